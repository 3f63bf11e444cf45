"""Several processes, accumulation and a sharded optimizer compute what one process computes with one large batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import image_folder

from paddlevit.config import get_config
from paddlevit.run.build import build_trainer
from paddlevit.training.optim import owners

HERE = Path(__file__).parent


def run(processes, *args):
    """Run parallel_steps.py on so many processes that know of each other."""
    sockets = [socket.socket() for _ in range(processes)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    endpoints = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    common = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "FLAGS_use_stride_kernel": "0"}
    environments = [
        {
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(processes),
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            "PADDLE_DISTRI_BACKEND": "gloo",
        }
        for rank in range(processes)
    ]
    command = [sys.executable, HERE / "parallel_steps.py", *map(str, args)]
    running = [subprocess.Popen(command, env={**common, **(each if processes > 1 else {})}) for each in environments]
    assert [process.wait(300) for process in running] == [0] * processes


def steps(folder, processes, *cases):
    """Let parallel_steps.py write what it computes, by process."""
    image_folder(folder, classes=10, val=101)
    run(processes, "cpu", folder, *cases)


@pytest.fixture(scope="module")
def alone(once):
    return np.load(once("alone", lambda folder: steps(folder, 1, "32x1", "8x4")) / "0.npz")


@pytest.fixture(scope="module")
def together(once):
    folder = once("together", lambda folder: steps(folder, 2, "16x1", "8x2", "16x1s", "8x2s", "8x2r"))
    return [np.load(folder / f"{rank}.npz") for rank in range(2)]


def assert_same(result, case, alone):
    assert alone["32x1/losses"][-1] < 0.98 * alone["32x1/losses"][0], "nothing was learnt"
    np.testing.assert_allclose(result[f"{case}/losses"], alone["32x1/losses"], rtol=1e-6, atol=0)
    np.testing.assert_allclose(result[f"{case}/weights"], alone["32x1/weights"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_four_batches_of_8_are_one_of_32(alone):
    assert_same(alone, "8x4", alone)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["16x1", "8x2", "16x1s", "8x2s", "8x2r"])
def test_two_processes_are_one(alone, together, case):
    for result in together:
        assert_same(result, case, alone)


@pytest.mark.slow
def test_all_processes_evaluate_with_the_mean_of_their_running_statistics(together):
    own = [result["statistics/own"] for result in together]
    assert not np.allclose(own[0], own[1])
    for result in together:
        np.testing.assert_allclose(result["statistics/model"], (own[0] + own[1]) / 2, rtol=1e-12)
        np.testing.assert_array_equal(result["statistics/ema"], together[0]["statistics/ema"])


@pytest.mark.slow
def test_sharded_state_takes_half_the_memory(together):
    whole = int(together[0]["16x1/bytes"])
    parts = [int(result["16x1s/bytes"]) for result in together]
    assert sum(parts) == whole
    assert max(parts) < 0.55 * whole


def test_one_process_keeps_the_whole_state():
    trainer = build_trainer(get_config("pit_digits", ["TRAIN.SHARD_OPTIMIZER", True]), 4)
    trainer.train_step(paddle.rand([2, 3, 32, 32]), paddle.to_tensor([1, 2]))
    names = {name for name, param in trainer.model.named_parameters() if not param.stop_gradient}
    assert {key.rsplit("/", 1)[0] for key in trainer.state()["optimizer"]} == names


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_shares_are_even(sizes, processes):
    found = owners(sizes, processes)
    assert found.keys() == sizes.keys()
    loads = [sum(sizes[name] for name, owner in found.items() if owner == rank) for rank in range(processes)]
    assert max(loads) - min(loads) <= max(sizes.values())


@pytest.mark.slow
def test_evaluation_is_the_same_on_two_processes_and_with_any_batch_size(alone, together):
    """101 images, which none of the numbers divides. The loss is a sum of float32 numbers, each as the batch had it."""
    results = [result for computed in (alone, together[0]) for result in json.loads(str(computed["evaluations"]))]
    assert len(results) == 6
    assert results[0]["num_images"] == 101
    assert 0 < results[0]["acc1"] < results[0]["acc5"] < 100
    for result in results:
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-7)
        assert {**result, "loss": 0} == {**results[0], "loss": 0}
