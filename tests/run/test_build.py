"""A run as its configuration says: weights and averages, learning rate, processes, precision, what is drawn."""

from __future__ import annotations

import contextlib
import json
import logging
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from tiny import arrays, batch, image_folder, network, trainer_of

from paddlevit import build_model
from paddlevit.commands.train import main
from paddlevit.config import get_config, with_values
from paddlevit.data import build
from paddlevit.data.mixup import SmoothTargets
from paddlevit.errors import UserError
from paddlevit.run.build import build_trainer, log_start
from paddlevit.run.folder import restore, resumed_state, save
from paddlevit.runtime import process
from paddlevit.runtime.files import sha256
from paddlevit.training import checkpoint
from paddlevit.training.objectives import Distilled, Supervised, soft_cross_entropy


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("pictures"), classes=2, train=32, val=8)


def train(folder, output, *flags):
    args = ["-cfg", "pit_digits", "-data_path", folder, "-output", output, "-batch_size", 8, "-device", "cpu", *flags]
    opts = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0.5, "TRAIN.MODEL_EMA", True]
    return main([str(arg) for arg in (*args, "-opts", *opts)], nprocs=1)


def small_trainer(*opts):
    return build_trainer(get_config("pit_digits", opts), 4)


def assert_same(some, others):
    assert some.keys() == others.keys()
    assert all(np.array_equal(some[name], others[name]) for name in some)


def test_the_average_starts_from_the_given_weights(tmp_path):
    given = build_model(get_config("pit_digits"))
    checkpoint.write_weights(tmp_path / "given.pdparams", given.state_dict())
    trainer = small_trainer("MODEL.PRETRAINED", str(tmp_path / "given.pdparams"), "TRAIN.MODEL_EMA", True)
    assert_same(arrays(trainer.ema.model), arrays(given))


def test_the_average_of_a_run_that_had_none(tmp_path):
    before = small_trainer("TRAIN.MODEL_EMA", False, "SEED", 1)
    save(tmp_path, before, keep=1)
    config = get_config("pit_digits", ["MODEL.RESUME", "auto"])
    after = small_trainer("TRAIN.MODEL_EMA", True, "SEED", 2)
    restore(after, resumed_state(config, tmp_path), tmp_path)
    assert_same(arrays(after.ema.model), arrays(before.model))


def test_a_resumed_run_knows_its_best(tmp_path):
    before, after = small_trainer(), small_trainer()
    checkpoint.write_weights(tmp_path / "best.pdparams", before.model.state_dict())
    digest = sha256(tmp_path / "best.pdparams")
    before.best = {"acc1": 12.5, "epoch": 7, "weights": "ema", "sha256": digest}
    save(tmp_path, before, keep=1)
    restore(after, resumed_state(get_config("pit_digits", ["MODEL.RESUME", "auto"]), tmp_path), tmp_path)
    assert after.best == before.best


@pytest.mark.parametrize(("accum_iter", "processes"), [(1, 1), (4, 1), (2, 8), (64, 1)])
def test_the_rate_follows_all_images_of_an_optimizer_step(accum_iter, processes, monkeypatch, caplog):
    monkeypatch.setattr(process, "world_size", lambda: processes)
    monkeypatch.setattr(paddle, "DataParallel", lambda model: model)
    opts = ["TRAIN.BASE_LR", 5e-4, "TRAIN.LINEAR_SCALED_LR", 512, "TRAIN.END_LR", 1e-5, "TRAIN.SCALE_ALL_LRS", False]
    opts += ["TRAIN.NUM_EPOCHS", 300, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.LR_SCHEDULE", "iteration"]
    config = get_config("pit_digits", [*opts, "TRAIN.ACCUM_ITER", accum_iter, "DATA.BATCH_SIZE", 32])
    batches = min(accum_iter, 6)  # of an optimizer step: an epoch has no more
    trainer, peak = build_trainer(config, 6), 5e-4 * 32 * batches * processes / 512
    assert trainer.lr_at(0) == pytest.approx(peak)
    assert trainer.lr_at(300) == pytest.approx(1e-5)
    loader = SimpleNamespace(num_images=1, source=SimpleNamespace(num_classes=10))
    caplog.set_level(logging.INFO, "paddlevit")
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    log_start(config, trainer, loader, loader)
    assert f"effective batch: {32 * batches * processes} images (32 x accum_iter {batches} x" in caplog.text
    assert ("TRAIN.ACCUM_ITER 64 is capped at 6" in caplog.text) == (accum_iter == 64)
    assert f"peak learning rate {peak:.3e}" in caplog.text
    assert "warm-up" not in caplog.text
    log_start(with_values(config, {"TRAIN.WARMUP_EPOCHS": 301.0}), trainer, loader, loader)
    assert "TRAIN.WARMUP_EPOCHS 301 is more than TRAIN.NUM_EPOCHS 300" in caplog.text


@pytest.mark.parametrize("processes", [1, 2])
def test_several_processes_train_one_network(processes, monkeypatch):
    monkeypatch.setattr(process, "world_size", lambda: processes)
    monkeypatch.setattr(paddle, "DataParallel", lambda model: SimpleNamespace(model=model))
    trainer = small_trainer()
    assert trainer.forward is trainer.model or processes > 1
    assert getattr(trainer.forward, "model", None) is trainer.model or processes == 1


def test_processes_epochs_and_steps_draw_different_numbers(pictures, monkeypatch):
    drawn = {"mixing": [], "dropout": [], "erasing": []}
    monkeypatch.setattr(build, "build_erasing", lambda config: lambda x, key: drawn["erasing"].append(key) or x)
    for rank in range(2):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(rank))
        trainer = trainer_of(network())
        trainer.steps_per_epoch, smooth, learn = 2, SmoothTargets(3), Supervised()
        trainer.mixup = lambda x, labels, key, smooth=smooth: drawn["mixing"].append(key) or smooth(x, labels, key)
        trainer.objective = lambda *args, learn=learn: (
            drawn["dropout"].append(tuple(paddle.rand([4]).tolist())) or learn(*args)
        )
        config = get_config("pit_digits", ["DATA.DATA_PATH", str(pictures), "DATA.BATCH_SIZE", 8])
        loader = build.build_train_loader(config, rank=rank, world_size=2)
        for epoch in range(2):
            trainer.train_epoch(map(batch, range(2)), lambda loss, waited: None)
            assert len(list(loader.epoch(epoch))) == 2
    assert {name: len(set(found)) for name, found in drawn.items()} == dict.fromkeys(drawn, 8)


def test_evaluation_does_not_resume(pictures, tmp_path, capfd):
    assert train(pictures, tmp_path / "run", "-eval", "-pretrained", "x", "-resume", "y") == 2
    assert "-eval: name the weights once" in capfd.readouterr().err


def test_an_evaluation_whose_loss_is_not_finite_is_written_as_json(pictures, tmp_path):
    model = build_model(get_config("pit_digits", ["MODEL.NUM_CLASSES", 2]))
    model.head.bias.set_value(paddle.full([2], float("nan")))
    checkpoint.write_weights(tmp_path / "spoilt.pdparams", model.state_dict())
    assert train(pictures, tmp_path / "run", "-eval", "-pretrained", tmp_path / "spoilt.pdparams") == 0
    text = (tmp_path / "run" / "eval.json").read_text()
    assert json.loads(text)["loss"] is None and "NaN" not in text
    assert json.loads(text)["acc1"] == 0.0 and "not finite count as wrong" in (tmp_path / "run" / "log.txt").read_text()
    rows = (tmp_path / "run" / "per_class.csv").read_text().splitlines()[1:]
    assert rows and all(row.endswith(",0.0000,0.0000,0.0000") for row in rows)


def test_numbers_are_not_made_of_arrays(pictures, tmp_path, monkeypatch):
    """A whole run where float() and int() of a tensor with axes fail, as they do with NumPy 2.4."""
    for name in ("__float__", "__int__"):
        original = getattr(paddle.Tensor, name)

        def convert(tensor, original=original):
            if tensor.ndim:
                raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
            return original(tensor)

        monkeypatch.setattr(paddle.Tensor, name, convert)
    with pytest.raises(TypeError, match="0-dimensional"):
        float(paddle.zeros([1]))
    assert train(pictures, tmp_path / "run") == 0


def stand_before_a_gpu(monkeypatch, capability):
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)


@pytest.mark.parametrize(
    ("dtype", "capability", "hint"),
    [
        ("bfloat16", (7, 5), "needs a GPU of compute capability 8.0, this one has 7.5; use -amp_dtype float16"),
        ("bfloat16", (7, 0), "use -amp_dtype float16"),
        ("bfloat16", (6, 1), "compute capability 8.0, this one has 6.1; train without -amp"),
        ("float16", (6, 1), "compute capability 7.0, this one has 6.1; train without -amp"),
        ("float16", (7, 0), ""),
        ("bfloat16", (8, 0), ""),
        ("bfloat16", (12, 0), ""),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_refused(dtype, capability, hint, monkeypatch):
    """Paddle only warns, and computes in float32."""
    stand_before_a_gpu(monkeypatch, capability)
    with pytest.raises(UserError, match=hint) if hint else contextlib.nullcontext():
        process.check_amp(dtype)


def test_a_precision_that_the_gpu_lacks_is_refused_before_anything_is_done(pictures, tmp_path, monkeypatch, capsys):
    stand_before_a_gpu(monkeypatch, (7, 5))
    arguments = ["-amp", "-amp_dtype", "bfloat16"]
    assert train(pictures, tmp_path / "run", *arguments) == 2
    assert "use -amp_dtype float16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(pictures, tmp_path / "run", *arguments, "-eval", "-pretrained", "x.pdparams") == 2
    assert "use -amp_dtype float16" in capsys.readouterr().err


def test_amp_reaches_training_and_evaluation(pictures, tmp_path, monkeypatch):
    entered = []
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **options: entered.append(options) or contextlib.nullcontext())
    assert train(pictures, tmp_path / "cpu", "-amp") == 0
    assert not any(options["enable"] for options in entered)
    assert (tmp_path / "cpu" / "log.txt").read_text().count("-amp does nothing on a CPU") == 1
    entered.clear()
    stand_before_a_gpu(monkeypatch, (8, 0))
    monkeypatch.setattr(paddle.device.cuda, "max_memory_allocated", lambda: 0)
    assert train(pictures, tmp_path / "gpu", "-amp", "-amp_dtype", "bfloat16") == 0
    batches = 4 + 2 + 1  # training; evaluation of the network and its average; the best once more
    assert entered == [{"enable": True, "dtype": "bfloat16", "level": "O1"}] * batches


def test_half_precision_leaves_average_and_losses_alone(monkeypatch):
    asked = []

    def decorate(model, optimizer, **options):
        asked.append({**options, "multi_precision": optimizer._multi_precision})
        model.to(dtype=options["dtype"])

    monkeypatch.setattr(paddle.amp, "decorate", decorate)
    trainer = small_trainer("AMP", True, "AMP_OPT_LEVEL", "O2", "AMP_DTYPE", "bfloat16", "TRAIN.MODEL_EMA", True)
    precise = {"master_weight": True, "master_grad": True, "multi_precision": True}
    assert asked == [{**precise, "level": "O2", "dtype": "bfloat16"}]
    assert trainer.model.head.weight.dtype == paddle.bfloat16
    assert {value.dtype for value in trainer.ema.model.state_dict().values()} == {paddle.float32}
    trainer.model.head.bias.set_value(paddle.full([10], 1000.0, "bfloat16"))
    trainer.ema.update(10**9)
    np.testing.assert_allclose(trainer.ema.model.head.bias.numpy(), 1000.0 * (1 - trainer.ema.decay), rtol=0.02)
    logits, targets = paddle.randn([2, 3]).astype("bfloat16"), paddle.full([2, 3], 1 / 3)
    assert soft_cross_entropy(logits, targets).dtype == paddle.float32
    for kind in ("soft", "hard"):
        assert Distilled(nn.Identity(), kind=kind)(nn.Identity(), logits, targets)[0].dtype == paddle.float32
