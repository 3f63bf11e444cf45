"""What becomes of a run's output is not the run: dead pipes, closed and full streams, narrow encodings."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import image_folder

from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.run.folder import open_folder
from paddlevit.runtime import process, streams
from paddlevit.runtime.files import write_text

ROOT = Path(__file__).resolve().parents[2]
PADDLEVIT = f"{sys.executable} -m paddlevit"
SINKS = {
    "full": "{} > /dev/full 2>&1",
    "gone": "{{ {} 2>&1; echo $? >&9; }} | true",
    "closed": "{} <&- >&- 2>&-",
    "no error stream": "{} 2>&-",
    "ascii": "PYTHONIOENCODING=ascii LC_ALL=C {}",
    "latin": "PYTHONIOENCODING=latin-1 LC_ALL=POSIX PYTHONUTF8=0 {}",
}


def shell(command, sink, folder):
    """The exit code of the command itself, and what comes out."""
    line = f"exec 9>{folder}/code; {SINKS[sink].format(command)}" + ("" if ">&9" in SINKS[sink] else "; echo $? >&9")
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, timeout=300)
    return int((folder / "code").read_text()), done.stdout, done.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """With images that cannot be read, whose names are no UTF-8, and hold what a terminal would obey."""
    folder = image_folder(tmp_path_factory.mktemp("pictures"), classes=2, train=16, val=4)
    for name in (b"caf\xe9.png", "\u732b\u2028\x1b[2J.png".encode()):
        Path(os.fsdecode(os.fsencode(folder) + b"/train/0/" + name)).write_bytes(b"no image")
    shutil.copy(folder / "val/0/0.png", os.fsdecode(os.fsencode(folder) + b"/val/0/v\xe9.png"))
    for split in ("train", "val"):
        (folder / split / "1").rename(folder / split / "\u732b")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sink", ["full", "gone", "closed", "no error stream", "latin"])
def test_a_run_does_not_need_its_output(pictures, tmp_path, sink):
    flags = f"-cfg pit_digits -data_path {pictures} -output {tmp_path}/run -batch_size 6 -num_workers 0 -epochs 1"
    opts = "-opts TRAIN.WARMUP_EPOCHS 0 DATA.ON_ERROR skip REPORT_FREQ 1"
    code, out, errors = shell(f"{PADDLEVIT} train {flags} {opts}", sink, tmp_path)
    assert code == 0 and b"Traceback" not in out + errors and b"Error" not in errors, errors.decode()
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "caf\\udce9.png" in log and "\\x1b[2J.png" in log and "\x1b" not in log
    assert "\u732b\u2028" in log and (tmp_path / "run" / "class_names.txt").read_text("utf-8") == "0\n\u732b\n"
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "\u732b" in page and "???" not in page
    assert "report: " in log.splitlines()[-1]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"epoch_001.pdstate", "best.pdparams", "report.html"} <= names
    assert not any(path.read_bytes().startswith(b"20") for path in (tmp_path / "run").glob("*.pd*"))
    if sink == "latin":
        assert b"caf\\udce9.png" in out and b"\\u732b" in out and b"\x1b[2J" not in out


@pytest.mark.parametrize(
    ("command", "sink", "expected"),
    [
        ("models", "full", 2),
        ("models", "gone", 141),
        ("models", "closed", 0),
        ("models", "ascii", 0),
        ("models xyz\u732b", "full", 2),
        ("models xyz\u732b", "closed", 2),
        ("models xyz\u732b", "ascii", 2),
        ("-h", "gone", 0),
        ("train -h", "full", 0),
        ("no_such_command", "no error stream", 2),
    ],
)
def test_commands_end_as_they_should_whatever_becomes_of_their_output(tmp_path, command, sink, expected):
    code, out, errors = shell(f"{PADDLEVIT} {command}", sink, tmp_path)
    assert (code, b"Traceback" in errors + out, b"Exception" in errors + out) == (expected, False, False)
    if sink == "ascii" and expected == 2:
        assert errors.decode("ascii").startswith("error: no variant is called 'xyz\\u732b'")


def test_the_log_says_why_a_run_ended(tmp_path):
    config = get_config("pit_digits", ["OUTPUT", str(tmp_path / "run")])
    for error, told in (
        (UserError("the data"), "ERROR   ended by UserError: the data"),
        (ZeroDivisionError("ours"), "ZeroDivisionError: ours"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
    ):
        with pytest.raises(type(error)), open_folder(config) as folder:
            (folder / "config.yaml").touch()
            raise error
        log = (tmp_path / "run" / "log.txt").read_text()
        assert told in log and ("Traceback" in log) == (not isinstance(error, UserError)), error
        (tmp_path / "run" / "log.txt").unlink()


def test_lines_that_find_no_room_come_with_the_next_one_that_does(tmp_path, capfd):
    logger, own = logging.getLogger("paddlevit"), logging.NullHandler()
    logger.addHandler(own)
    process.setup_logging(tmp_path)
    assert own in logger.handlers, "the caller's stay"
    logger.removeHandler(own)
    handler = logger.handlers[-1]
    own = os.dup(handler.stream.fileno())
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, handler.stream.fileno())
    logger.info("first caf\udce9")
    os.dup2(own, handler.stream.fileno())
    logger.info("second")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["caf\\udce9", "second"]
    assert "Traceback" not in capfd.readouterr().err


def test_names_in_files_are_utf8_whatever_the_locale_and_other_bytes_are_escaped(tmp_path):
    in_the_c_locale = "caf\udce9 \udce7\udc8c\udcab"
    write_text(tmp_path / "text", in_the_c_locale)
    assert (tmp_path / "text").read_text("utf-8") == "caf\\udce9 \u732b"
    assert streams.escaped(f"{in_the_c_locale}\x1b\ud800") == "caf\\udce9 \u732b\\x1b\\ud800"
    assert os.fsdecode("\u732b".encode()) == get_config(opts=["OUTPUT", "\udce7\udc8c\udcab"]).OUTPUT
    for path in ("a\0b", "\ud800"):
        with pytest.raises(UserError, match="opts: OUTPUT "):
            get_config(opts=["OUTPUT", path])
