"""The command line as users meet it: whole runs on real digits, resuming, and mistakes that end with code 2."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from tiny import image_folder

import paddlevit
from paddlevit.commands import prepare_data
from paddlevit.commands import train as command_room
from paddlevit.commands.train import main, parse_args
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.pit import build_pit as build_model
from paddlevit.run import train as run_room
from paddlevit.runtime.files import sha256
from paddlevit.training import checkpoint, engine

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["TRAIN.NUM_EPOCHS", "3", "TRAIN.WARMUP_EPOCHS", "1.0", "REPORT_FREQ", "1", "KEEP_LAST", "2"]


def command(*args):
    return [sys.executable, str(ROOT / "tools" / "main_single_gpu.py"), *map(str, args)]


def run(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def digits(once):
    """A fifth of the handwritten digits: 288 to train on, 72 to validate."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn (pip install '.[demo]')")
    return once("digits", write_digits)


def write_digits(folder):
    assert prepare_data.main(["digits", str(folder)]) == 0
    for split in ("train", "val"):
        lines = (folder / f"{split}_list.txt").read_text().splitlines()
        (folder / f"{split}_list.txt").write_text("".join(line + "\n" for line in lines[::5]))


def run_here(*args):
    return main([str(arg) for arg in args], nprocs=1)


def train_args(digits, output, *more):
    return ["-cfg", "pit_digits", "-data_path", digits, "-output", output, *more, "-opts", *QUICK]


@pytest.fixture(scope="module")
def trained(digits, once):
    """The folder of a run, and what it printed and said of errors."""

    def train(folder):
        result = run(*train_args(digits, folder / "run"))
        assert result.returncode == 0, result.stdout + result.stderr
        for name in ("stdout", "stderr"):
            (folder / name).write_text(getattr(result, name))

    folder = once("trained", train)
    return folder / "run", (folder / "stdout").read_text(), (folder / "stderr").read_text()


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_runs_folder_holds_what_is_promised(trained):
    folder, *_ = trained
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.jsonl", "best.pdparams", "report.html"} <= names
    checkpoints = {f"epoch_{n:03d}{suffix}" for n in (2, 3) for suffix in (".pdparams", "_ema.pdparams", ".pdstate")}
    assert {name for name in names if name.startswith("epoch_")} == checkpoints
    assert get_config(folder / "config.yaml").MODEL.NUM_CLASSES == 10


def test_the_report_calls_images_as_below_the_data(trained, digits):
    page = (trained[0] / "report.html").read_text(encoding="utf-8")
    assert re.search(r">val/\d/\d{4}\.png<", page) and f"{digits}/val" not in page


def test_metrics_say_what_happened(trained):
    folder, *_ = trained
    lines = records(folder)
    train = [line for line in lines if line["phase"] == "train"]
    assert [(line["epoch"], line["step"]) for line in train] == [(e, s) for e in (1, 2, 3) for s in (1, 2, 3, 4)]
    assert all({"loss", "lr", "images_per_sec"} <= line.keys() for line in train)
    assert train[-1]["loss"] < train[0]["loss"]
    val = [line for line in lines if line["phase"] == "val" and not line.get("best")]
    assert [(line["epoch"], line["weights"]) for line in val] == [(e, w) for e in (1, 2, 3) for w in ("model", "ema")]
    assert all(line["num_images"] == 72 for line in val)
    assert lines[-1]["acc1"] == max(line["acc1"] for line in val)


def test_the_log_in_a_pipe_has_plain_lines(trained):
    _, stdout, stderr = trained
    for text in (stdout, stderr):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    assert "effective batch: 64 images" in stdout
    assert re.search(r"epoch 1/3  step 2/4  loss \d", stdout)
    assert "weight decay 0.05 on" in stdout
    assert stderr == ""


@pytest.mark.slow
def test_on_a_terminal_there_is_a_progress_bar(digits, tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    args = train_args(digits, tmp_path / "run")[:-9]
    args += ["-opts", "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0.5]
    process = subprocess.Popen(command(*args), stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody writes to any more with an error
        while chunk := os.read(master, 4096):
            shown += chunk
    os.close(master)
    assert process.wait() == 0
    text = shown.decode()
    assert re.search(r"epoch 1/1: +\d+%", text)
    assert re.search(r"loss \d\.\d+  lr \d\.\d+e-\d+  \d+ images/s  \d\d:\d\d left", text)
    assert "validation:" in text


def test_evaluation_of_best_gives_the_last_line_digit_for_digit(trained, digits, tmp_path):
    folder, *_ = trained
    words = [
        "-cfg",
        "pit_digits",
        "--data_path",
        digits,
        f"-output={tmp_path}",
        "-eval",
        "-pretrained",
        folder / "best",
    ]
    assert run_here(*words) == 0
    evaluated, last = json.loads((tmp_path / "eval.json").read_text()), records(folder)[-1]
    for key in ("loss", "acc1", "acc5", "num_images"):
        assert evaluated[key] == last[key]


def test_a_runs_weights_know_their_configuration(trained, tmp_path):
    folder, *_ = trained
    assert run_here(f"-output={tmp_path}", "-eval", "-pretrained", folder / "best") == 0
    assert json.loads((tmp_path / "eval.json").read_text())["acc1"] == records(folder)[-1]["acc1"]
    assert parse_args(["-pretrained", str(folder / "best")]).cfg == "pit_digits", "another run's keys are not taken"
    with pytest.raises(UserError, match="there is no weights file gone"):
        parse_args(["-pretrained", "gone"])
    for weights in ("official", "hf:nobody/nothing"):
        with pytest.raises(UserError, match="-cfg FILE is missing"):
            parse_args(["-pretrained", weights])


def test_the_four_lines_of_a_notebook(trained, digits):
    folder, *_ = trained
    config = get_config(str(ROOT / "configs/demo/pit_digits.yaml"))
    model = build_model(config)
    model.set_state_dict(paddle.load(str(folder / "best.pdparams")))
    model.eval()
    lines = [line.rsplit(maxsplit=1) for line in (digits / "val_list.txt").read_text().splitlines()]
    pixels = np.stack([np.asarray(Image.open(digits / name).convert("RGB").resize((32, 32))) for name, _ in lines])
    images = (pixels / 255.0 - config.DATA.IMAGENET_MEAN) / config.DATA.IMAGENET_STD
    with paddle.no_grad():
        predicted = model(paddle.to_tensor(images.transpose(0, 3, 1, 2).astype("float32"))).argmax(-1).numpy()
    accuracy = 100 * np.mean(predicted == [int(label) for _, label in lines])
    assert accuracy == pytest.approx(records(folder)[-1]["acc1"], abs=1e-9)


def weights(folder):
    return {name: value.numpy() for name, value in paddle.load(str(folder / "epoch_003.pdparams")).items()}


def assert_same_run(folder, undisturbed):
    ours, theirs = weights(folder), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    timed = ("images_per_sec", "data_wait", "seconds", "memory_mib")
    plain = [[{k: v for k, v in line.items() if k not in timed} for line in records(f)] for f in (folder, undisturbed)]
    # A line's loss is the mean since the line before, which a resumed epoch begins anew: lines are written every step.
    assert plain[0] == plain[1]


@pytest.mark.slow
def test_the_same_run_from_python(trained, digits, tmp_path):
    keys = {"REPORT_FREQ": 1, "KEEP_LAST": 2}
    run = paddlevit.train("pit_digits", digits, output=tmp_path / "run", epochs=3, warmup_epochs=1.0, opts=keys)
    assert_same_run(run.folder, trained[0])
    assert run.metrics == records(run.folder)[-1]
    assert run.metrics["best"]
    assert run.best.is_file()
    assert run.report.is_file()
    logging.getLogger("paddlevit.classifier").warning("said later")
    assert "said later" not in (run.folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 1e-3}, "there is no flag -learning_rate; did you mean -lr?"),
        ({"epochs": "many"}, "-epochs must be an integer, got 'many'"),
        ({"reinit_head": True, "opts": {"TRAIN.EPOCHS": 1}}, "there is no key 'TRAIN.EPOCHS'"),
        ({"freeze": ["head*", "!head.bias"], "nprocs": 2}, "trains in one process"),
        ({"eval": True}, "trains in one process"),
        ({"opts": ["TRAIN.EPOCHS", 1]}, "there is no key 'TRAIN.EPOCHS'"),
        ({"opts": {"TTA": "flip"}}, "TTA works only with -eval: training does not use it"),
        ({"pretrained": {"head.bias": 0}}, "pretrained must be a name, a path, a number or a list, got a dict"),
        ({"device": "tpu"}, "-device must be auto, gpu, cpu or custom:NAME, got 'tpu'"),
    ],
)
def test_mistakes_from_python_are_errors_and_leave_no_folder(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        paddlevit.train("pit_digits", **given)
    assert list(tmp_path.iterdir()) == []


def test_python_trains_in_the_main_thread_of_a_process_without_launcher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match="in the main thread"):
        pool.submit(paddlevit.train, "pit_digits").result()
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    with pytest.raises(UserError, match="that no launcher started"):
        paddlevit.train("pit_digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "error"), [(130, KeyboardInterrupt), (143, SystemExit)])
def test_a_stopped_run_ends_the_program_from_python(code, error, tmp_path, monkeypatch):
    monkeypatch.setattr(command_room, "_start", lambda config: code)
    with pytest.raises(error):
        paddlevit.train("pit_digits", output=tmp_path)


def start_and_wait(args, folder, pattern):
    """Start a run and return it as soon as its log matches `pattern`."""
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    log = folder / "log.txt"
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and re.search(pattern, log.read_text()):
            return process
        time.sleep(0.005)
    raise AssertionError(f"{pattern} never came: {process.communicate()}")


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed_bit_for_bit(trained, digits, tmp_path):
    args = train_args(digits, tmp_path / "run", "-resume", "auto")
    process = start_and_wait(args, tmp_path / "run", r"epoch 2/3  step 2/4")
    process.kill()
    process.communicate()
    assert not list((tmp_path / "run").glob("epoch_003*"))
    assert run_here(*args) == 0
    assert "resuming from" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_run(tmp_path / "run", trained[0])


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code", "epoch"), [(signal.SIGTERM, 143, 3), (signal.SIGINT, 130, 2)])
def test_asked_to_stop_it_saves_says_so_and_goes_on_later(trained, digits, tmp_path, capsys, signum, code, epoch):
    args = train_args(digits, tmp_path / "run", "-resume", "auto")
    process = start_and_wait(args, tmp_path / "run", rf"epoch {epoch}/3  step 1/4")
    process.send_signal(signum)
    out, err = process.communicate()
    assert process.returncode == code, err
    assert "stopped by SIG" in out and err == ""
    if epoch == 3:
        assert_the_best_are_known(tmp_path / "run", trained[0])
        assert run_here(*train_args(digits, tmp_path / "run", "-resume", "auto", "-batch_size", 16)) == 2
        assert "DATA.BATCH_SIZE x processes 64, now it is 16" in capsys.readouterr().err
    assert run_here(*args) == 0
    assert_same_run(tmp_path / "run", trained[0])


def assert_the_best_are_known(folder, undisturbed):
    path = checkpoint.newest(folder)
    assert "step" in path.name
    best = checkpoint.load(path, lambda weights: None)["progress"]["best"]
    first_two = [line["acc1"] for line in records(undisturbed) if line["phase"] == "val" and line["epoch"] <= 2]
    assert best["acc1"] == max(first_two)
    assert best["sha256"] == sha256(folder / "best.pdparams")


@pytest.mark.slow
def test_asked_to_stop_while_it_evaluates_it_does_so_later(trained, digits, tmp_path, monkeypatch):
    """In the second epoch, after the network and before its EMA."""
    args = train_args(digits, tmp_path / "run", "-resume", "auto")
    count = itertools.count()

    def evaluate(*args, **options):
        if next(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return engine.evaluate(*args, **options)

    monkeypatch.setattr(run_room, "evaluate", evaluate)
    assert run_here(*args) == 143
    last = records(tmp_path / "run")[-1]
    assert (last["phase"], last["epoch"], last["weights"]) == ("val", 2, "model")
    assert checkpoint.newest(tmp_path / "run").name == "epoch_002.pdstate"
    assert run_here(*args) == 0
    assert_same_run(tmp_path / "run", trained[0])


@pytest.mark.slow
def test_going_on_from_an_older_checkpoint_withdraws_the_later_ones(trained, digits, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    args = train_args(digits, tmp_path / "run", "-resume", tmp_path / "run" / "epoch_002")
    assert run_here(*args) == 0
    assert "deleted epoch_003, which is newer than epoch_002" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_run(tmp_path / "run", trained[0])


def test_going_on_in_another_folder(trained, digits, tmp_path):
    assert run_here(*train_args(digits, tmp_path / "run", "-resume", trained[0], "-pretrained", "is_not_read")) == 0
    last = records(tmp_path / "run")[-1]
    assert last["best"] and last["acc1"] == records(trained[0])[-1]["acc1"]
    assert (tmp_path / "run" / "best.pdparams").read_bytes() == (trained[0] / "best.pdparams").read_bytes()


def test_evaluating_in_a_runs_folder_leaves_its_configuration(trained, digits, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_text().replace("NPROCS: null", "NPROCS: 4")
    (tmp_path / "run" / "config.yaml").write_text(before)  # which says nothing of its evaluation
    weights = tmp_path / "run" / "epoch_003"
    assert run_here("-eval", "-pretrained", weights) == 0, "as the run's config.yaml says, but where it is now"
    assert run_here("-pretrained", weights, "-output", tmp_path / "other") == 2, "a run's data is not what to train on"
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert (tmp_path / "run" / "eval.json").is_file()


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(trained, digits, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    before = (tmp_path / "run" / "log.txt").read_text()
    with (tmp_path / "run" / "epoch_003.pdparams").open("r+b") as file:
        file.truncate(1000)
    assert run_here(*train_args(digits, tmp_path / "run", "-resume", "auto")) == 0
    said = (tmp_path / "run" / "log.txt").read_text().replace(before, "", 1)
    assert "epoch_003.pdparams" in said and "epoch_002" in said
    assert_same_run(tmp_path / "run", trained[0])


BASE = "-cfg pit_digits -output {tmp}/out"
GOOD, OWN = BASE + " -data_path {digits}", BASE + " -data_path {tmp}/own"
# Arguments that hold one mistake, and what the message must say.
MISTAKES = {
    "no cfg": ("-data_path {digits}", "-cfg"),
    "unknown flag": (GOOD + " -bach_size 3", "-bach_size"),
    "config typo": (GOOD + " -opts TRAIN.BASE_LRR 1", "TRAIN.BASE_LRR", "TRAIN.BASE_LR"),
    "wrong type": (GOOD + " -opts TRAIN.NUM_EPOCHS many", "TRAIN.NUM_EPOCHS must be an integer, got 'many'"),
    "missing data folder": (BASE + " -data_path {tmp}/nowhere", "nowhere"),
    "line without a label": (OWN, "train_list.txt", "65"),
    "label no number": (OWN, "train_list.txt", "65", "cat"),
    "missing image": (OWN, "train_list.txt", "65", "gone.png"),
    "label too large": (OWN + " -num_classes 10", "12", "10"),
    "unreadable image": (OWN, "5.png"),
    "weights of another network": (GOOD + " -eval -pretrained {tmp}/other.pdparams", "other.pdparams"),
    "no weights to evaluate": (GOOD + " -eval", "-pretrained"),
    "missing weights": (GOOD + " -eval -pretrained {tmp}/gone", "gone"),
    "another run's folder": (GOOD, "out", "-resume auto"),
    "no gpu": (GOOD + " -device gpu", "-device gpu", "-device cpu"),
    "more epochs done than there are": (
        GOOD + " -last_epoch 3 -opts TRAIN.NUM_EPOCHS 2",
        *("LAST_EPOCH", "NUM_EPOCHS, 2,", "got 3"),
    ),
    "nothing to resume": (GOOD + " -resume {tmp}/gone", "gone"),
    "loss without end": (
        GOOD + " -opts " + " ".join(QUICK) + " TRAIN.BASE_LR 1e30 TRAIN.MAX_NONFINITE 2",
        *("TRAIN.BASE_LR", "2 steps"),
    ),
    "processes for the wrong tool": (GOOD + " -nprocs 2", "main_multi_gpu.py"),
    "folder that cannot be made": (GOOD, "out"),
    "names that are too long": (BASE + " -data_path {tmp}/" + "x" * 300, "File name too long"),
    "a network without width": (GOOD + " -opts MODEL.MLP_RATIO 0.001", "MODEL.MLP_RATIO must be at least 1/32"),
}
LISTED = {
    "line without a label": "train/0/0.png",
    "label no number": "train/0/0.png cat",
    "missing image": "train/0/gone.png 0",
    "label too large": "train/0/0.png 12",
}


def prepare(name, tmp_path):
    """What the mistake needs; the data in own/ are 64 images in one class folder, and a list whose last line is bad."""
    if name in LISTED or name == "unreadable image":
        image_folder(tmp_path / "own", classes=1, train=64, val=64)
    if name in LISTED:
        lines = [*(f"train/0/{i}.png 0" for i in range(64)), LISTED[name]]
        (tmp_path / "own" / "train_list.txt").write_text("\n".join(lines))
        (tmp_path / "own" / "val_list.txt").write_text("val/0/0.png 0\n")
    elif name == "unreadable image":
        (tmp_path / "own" / "train" / "0" / "5.png").write_bytes(b"no image")
    elif name == "weights of another network":
        model = build_model(get_config("pit_digits", ["MODEL.NUM_HEADS", [2, 2, 2]]))
        paddle.save(model.state_dict(), str(tmp_path / "other.pdparams"))
    elif name == "another run's folder":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "epoch_001.pdparams").write_bytes(b"")
    elif name == "folder that cannot be made":
        (tmp_path / "out").write_text("a file")


@pytest.mark.parametrize(("name", "workers"), [*((name, 0) for name in MISTAKES), ("unreadable image", 2)])
def test_a_mistake_ends_with_a_message_and_code_2(digits, tmp_path, capfd, name, workers):
    if name == "no gpu" and paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        pytest.skip("there is a GPU")
    prepare(name, tmp_path)
    words, *said = MISTAKES[name]
    args = words.format(tmp=tmp_path, digits=digits).split()
    at = args.index("-opts") if "-opts" in args else len(args)
    capfd.readouterr()
    assert main([*args[:at], "-num_workers", str(workers), *args[at:]], nprocs=1) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 12
    assert [part for part in said if part not in error] == []
    if name not in ("unreadable image", "loss without end", "another run's folder", "folder that cannot be made"):
        assert not (tmp_path / "out").exists(), "a run that could not begin leaves no folder"


def test_options_may_be_given_in_several_places():
    args = parse_args(
        ["-cfg", "pit_digits", "-opts", "SEED", "3", "-batch_size", "4", "--opts", "TRAIN.NUM_EPOCHS", "2"]
    )
    assert (args.opts, args.batch_size) == (["SEED", "3", "TRAIN.NUM_EPOCHS", "2"], 4)


def test_the_process_itself_exits_with_2_and_without_a_traceback():
    result = run("-cfg", "pit_digits", "-epochs", "0")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
