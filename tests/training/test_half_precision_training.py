"""Networks with weights in half precision (AMP O2), as far as a CPU knows them: it keeps and casts such tensors, but
computes nothing with them. Paddle's own preparation believes that it stands before a GPU.
"""

from __future__ import annotations

import sys

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlevit.config import get_config
from paddlevit.paddle_internals import master_weights
from paddlevit.run.build import _to_half_precision
from paddlevit.training import checkpoint
from paddlevit.training.ema import ModelEma
from paddlevit.training.optim import build_optimizer, load_optimizer_arrays, optimizer_arrays
from paddlevit.weights import load_weights

CONFIG = get_config("pit_ti_224", ["AMP", True, "AMP_OPT_LEVEL", "O2"])


@pytest.fixture
def gpu(monkeypatch):
    class Place:
        def __getattr__(self, name):
            return lambda: name == "is_gpu_place"

    class Tracer:
        _expected_place = Place()

    preparation = sys.modules["paddle.amp.auto_cast"]
    monkeypatch.setattr(preparation, "_dygraph_tracer", Tracer)
    for dtype in ("float16", "bfloat16"):
        monkeypatch.setattr(preparation, f"_is_gpu_{dtype}_supported", lambda: True)
    yield
    preparation.amp_global_state().use_master_grad = False


def network(seed):
    paddle.seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.BatchNorm1D(5), nn.Linear(5, 3))


def prepared(seed, dtype):
    """A network and its optimizer, with a state as after some steps."""
    model = network(seed)
    optimizer = build_optimizer(CONFIG, model)
    if dtype != "float32":
        _to_half_precision(model, optimizer, dtype)
    return model, optimizer


def make_state(optimizer):
    """What the first step does before it computes anything."""
    optimizer._create_accumulators(paddle.static.default_main_program().global_block(), optimizer._parameter_list)


def fill_state(optimizer):
    rng = np.random.default_rng(1)
    for tensor in [*optimizer.state_dict()["master_weights"].values(), *_accumulators(optimizer)]:
        tensor.set_value(rng.standard_normal(tensor.shape).astype("float32"))


def _accumulators(optimizer):
    return [tensor for slot in optimizer._accumulators.values() for tensor in slot.values()]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_loaded_into_the_network_and_saved_in_full(gpu, dtype, tmp_path):
    model, _ = prepared(0, dtype)
    assert str(model[0].weight.dtype) == f"paddle.{dtype}" and model[2].weight.dtype == paddle.float32
    other = {name: value.numpy() for name, value in network(1).state_dict().items()}
    load_weights(model, other)
    np.testing.assert_allclose(model[0].weight.astype("float32").numpy(), other["0.weight"], rtol=2**-7)
    checkpoint.write_weights(tmp_path / "w.pdparams", model.state_dict())
    saved = paddle.load(str(tmp_path / "w.pdparams"))
    assert {str(value.dtype) for value in saved.values()} == {"paddle.float32"}
    np.testing.assert_array_equal(saved["0.weight"].numpy(), model[0].weight.astype("float32").numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_optimizer_goes_on_with_its_float32_copies(gpu, dtype):
    model, optimizer = prepared(0, dtype)
    make_state(optimizer)
    fill_state(optimizer)
    arrays = optimizer_arrays(optimizer, model)
    assert "0.weight/moment1_0" in arrays and "0.weight/master_weights" in arrays
    again, resumed = prepared(1, dtype)
    load_optimizer_arrays(resumed, again, arrays)
    make_state(resumed)
    assert {name: value.tolist() for name, value in optimizer_arrays(resumed, again).items()} == {
        name: value.tolist() for name, value in arrays.items()
    }


def test_precision_may_change_where_a_run_goes_on(gpu):
    model, optimizer = prepared(0, "bfloat16")
    make_state(optimizer)
    fill_state(optimizer)
    half = optimizer_arrays(optimizer, model)
    full_model, full_optimizer = prepared(1, "float32")
    load_optimizer_arrays(full_optimizer, full_model, half)
    np.testing.assert_array_equal(full_model[0].weight.numpy(), half["0.weight/master_weights"])
    make_state(full_optimizer)
    full = optimizer_arrays(full_optimizer, full_model)
    assert full.keys() == {name for name in half if not name.endswith("master_weights")}
    assert all(np.array_equal(full[name], half[name]) for name in full)
    back_model, back_optimizer = prepared(2, "bfloat16")
    load_optimizer_arrays(back_optimizer, back_model, full)
    make_state(back_optimizer)
    back = optimizer_arrays(back_optimizer, back_model)
    assert all(np.array_equal(full[name], back[name]) for name in full)


def test_state_that_was_put_back_is_not_lost_before_the_next_step():
    model = network(0)
    optimizer = build_optimizer(CONFIG, model)
    for param in model.parameters():
        param.grad = paddle.ones_like(param)
    optimizer.step()
    arrays = optimizer_arrays(optimizer, model)
    again = network(0)
    resumed = build_optimizer(CONFIG, again)
    load_optimizer_arrays(resumed, again, arrays)
    for _ in range(2):
        saved = optimizer_arrays(resumed, again)
        assert saved.keys() == arrays.keys()
        assert all(np.array_equal(saved[name], arrays[name]) for name in arrays)
        make_state(resumed)


def test_the_average_follows_the_float32_copies(gpu):
    model = network(0)
    ema = ModelEma(model, decay=0.5, warmup=False)
    optimizer = build_optimizer(CONFIG, model)
    _to_half_precision(model, optimizer, "bfloat16")
    make_state(optimizer)
    before = ema.model[0].weight.numpy().copy()
    master = master_weights(optimizer)[model[0].weight.name]
    master.set_value(master.numpy() + 1e-4)  # too little for bfloat16 to see
    ema.update(1, master_weights(optimizer))
    assert ema.model[0].weight.dtype == paddle.float32
    np.testing.assert_allclose(ema.model[0].weight.numpy(), (before + master.numpy()) / 2, rtol=1e-6)
