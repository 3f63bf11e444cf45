"""What comes before Paddle: -h and mistyped flags are answered at once, and importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import paddlevit

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
# Runs a tool as its own program, and says at the end what it took.
RUN = """
import atexit, runpy, sys, time
atexit.register(lambda: print(f"{time.process_time()} {sorted({'paddle', 'numpy', 'PIL'} & set(sys.modules))}"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def answer(*words):
    """Exit code, output, errors, CPU seconds, and which of the heavy packages were imported."""
    command = [sys.executable, "-c", RUN, *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    out, _, last = result.stdout.rstrip().rpartition("\n")
    seconds, _, heavy = last.partition(" ")
    return result.returncode, out, result.stderr, float(seconds), heavy


@pytest.mark.parametrize("tool", TOOLS)
def test_help_and_a_typo_do_not_wait_for_paddle(tool):
    code, out, _, seconds, heavy = answer(f"tools/{tool}", "-h")
    assert (code, heavy) == (0, "[]") and "usage:" in out
    assert seconds < 0.3
    code, _, err, seconds, heavy = answer(f"tools/{tool}", "-bach_size", "3")
    assert (code, heavy) == (2, "[]") and err.startswith("error: ")
    assert seconds < 0.3


def test_paddle_is_imported_when_it_is_needed_and_after_its_flags_are_set():
    code = """
import os, sys
os.environ.pop("FLAGS_use_stride_kernel", None)
import paddlevit
assert not {"paddle", "numpy"} & set(sys.modules)
assert os.environ["FLAGS_use_stride_kernel"] == "0"
assert paddlevit.build_model.__module__ == "paddlevit.models"
import paddle
assert not paddle.get_flags("FLAGS_use_stride_kernel")["FLAGS_use_stride_kernel"]
assert paddlevit.weights.load_weights and paddlevit.config.get_config("pit_ti_224")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_names_of_the_package():
    assert dir(paddlevit) == ["Classifier", "__version__", "build_model", "list_models"]
    assert "pit_ti_224" in paddlevit.list_models("pit_*")
    with pytest.raises(AttributeError, match="has no attribute 'biuld_model'"):
        _ = paddlevit.biuld_model


HIDDEN = "import sys; sys.modules['paddle'] = None\n"


@pytest.mark.parametrize(
    "code",
    ["import paddlevit; paddlevit.build_model", "from paddlevit.commands.count_flops import main; main(['-cfg=x'])"],
)
def test_without_paddle_both_ways_to_install_it_are_named(code):
    result = subprocess.run(
        [sys.executable, "-c", HIDDEN + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "pip install 'paddlepaddle>=3.0'" in result.stderr
    assert "paddlepaddle-gpu" in result.stderr


def test_importing_leaves_no_more_than_environment_variables():
    code = """
import ctypes, os, sys, warnings
filters, environment = warnings.filters[:], dict(os.environ)
class Refuse:
    def __getattr__(self, name):
        raise AssertionError(name)
ctypes.CDLL = lambda name: Refuse()
import paddlevit
assert warnings.filters == filters
print(sorted(set(os.environ) - set(environment)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert set(eval(result.stdout)) <= {"FLAGS_use_stride_kernel", "MKL_DEBUG_CPU_TYPE"}, result.stderr
