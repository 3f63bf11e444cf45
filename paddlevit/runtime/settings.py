"""Settings of Paddle, MKL and the C library that make models fast on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import platform
import sys
import warnings
from pathlib import Path

NO_PADDLE = (
    "paddlevit needs PaddlePaddle 3.x, which is not installed. For a CPU:  pip install 'paddlepaddle>=3.0'\n"
    "For a GPU:  pip install 'paddlepaddle-gpu>=3.0' with the package index for your CUDA version that "
    "https://www.paddlepaddle.org.cn/en/install/quick names"
)
_STRIDES = "FLAGS_use_stride_kernel"
# What the user said. Paddle sets it to 1 where it is unset, as it is imported; a 1 may then be Paddle's.
_ASKED_THREADS = os.environ.get("OMP_NUM_THREADS", "")
if "paddle" in sys.modules and _ASKED_THREADS == "1":
    _ASKED_THREADS = ""


def set_environment() -> None:
    """Set the variables that Paddle and MKL read when Paddle is imported, unless they are set or it is too late.

    This is all that importing the package does to its process.
    """
    if "paddle" not in sys.modules:
        turn_off_stride_kernels()
    if mkl_passes_over_avx2():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")  # 0 leaves the choice to MKL


def engine_threads() -> int:
    """Threads for engines other than Paddle: OMP_NUM_THREADS if the user has set it, else all cores of this process."""
    if _ASKED_THREADS.isdecimal() and int(_ASKED_THREADS):
        return int(_ASKED_THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """Import Paddle so that it computes on all cores of this process, not on one, as it does by itself.

    OMP_NUM_THREADS, if the user has set it, decides.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(engine_threads()))
    with contextlib.redirect_stderr(io.StringIO()):  # which has words for those who take more than one
        import paddle  # noqa: F401


def prepare_command() -> None:
    """Make this process, which is the package's own, fast on a CPU."""
    turn_off_stride_kernels()
    keep_memory()
    warnings.filterwarnings("ignore", message="No ccache found")  # only matters to who compiles Paddle extensions
    warnings.filterwarnings("ignore", message=r"\s*Non compatible API")  # Paddle 3.2, of the first split, max, ...


def turn_off_stride_kernels() -> None:
    """Let slices and transposes be copies, not views, in this process; FLAGS_use_stride_kernel=1 keeps views.

    On a CPU Paddle 3.3.1 copies a transposed view over 50 times slower than it transposes, once for every operator that
    reads it: a training step takes 1.4 times as long. Views from before cannot be used afterwards ("Not contiguous
    Tensor found"), in any thread: that is why no forward pass turns the flag off and on again for itself.
    """
    if os.environ.setdefault(_STRIDES, "0") == "0" and "paddle" in sys.modules:
        import paddle

        paddle.set_flags({_STRIDES: False})


def warn_of_stride_kernels() -> None:
    """Warn where Paddle was imported too early for `set_environment`, and this process computes on a CPU."""
    import paddle

    if _STRIDES not in os.environ and paddle.get_flags(_STRIDES)[_STRIDES] and paddle.device.get_device() == "cpu":
        warnings.warn(
            "Paddle's stride kernels are on, as it was imported before paddlevit: on a CPU, training takes 1.4 times "
            "as long. paddlevit.runtime.settings.turn_off_stride_kernels() turns them off; FLAGS_use_stride_kernel=1 "
            "in the environment keeps them, without this warning.",
            stacklevel=3,
        )


def keep_memory() -> None:
    """Let this process keep, for good, the memory that it has freed.

    The C library gives large blocks back at once; the next layer asks for them again, and clearing the new pages takes
    up to half of the time of an elementwise operation. PADDLEVIT_KEEP_MEMORY=0 in the environment leaves that as it is.
    """
    if sys.platform == "linux" and os.environ.get("PADDLEVIT_KEEP_MEMORY") != "0":
        with contextlib.suppress(AttributeError):  # a C library without mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no block gets pages of its own
            libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


def mkl_passes_over_avx2() -> bool:
    """Whether this processor has AVX2, but MKL does not see it.

    Paddle's wheels for CPUs multiply matrices by Intel's MKL of 2019, which uses its SSE kernels on other makers'
    processors: on an AMD EPYC (Zen 2) a product of 1024 x 1024 takes 6.7 times as long as with the AVX2 kernels. With
    MKL_DEBUG_CPU_TYPE=5 in the environment MKL takes those; versions after 2020.0 do not know this variable.
    """
    maker, _, features = processor()
    return maker != "GenuineIntel" and {"avx2", "fma"} <= set(features.split())


def processor() -> tuple[str, str, str]:
    """Maker, name and features, such as avx512_bf16, of this machine's processor; "" what Linux alone would tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return said.get("vendor_id", ""), said.get("model name", platform.machine()), said.get("flags", "")
