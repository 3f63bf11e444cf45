"""What Paddle, MKL and the C library read once, set before Paddle is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import warnings
from pathlib import Path

NO_PADDLE = (
    "paddlevit needs PaddlePaddle 3.x, which is not installed. For a CPU:  pip install 'paddlepaddle>=3.0'\n"
    "For a GPU:  pip install 'paddlepaddle-gpu>=3.0' with the package index for your CUDA version that "
    "https://www.paddlepaddle.org.cn/en/install/quick names"
)


def prepare_for_paddle() -> None:
    """Set what makes Paddle fast on a CPU, except where the environment says otherwise.

    Paddle's stride kernels make slices and transposes into views, and on a CPU every operator that then reads a view
    slower: a training step takes about 2.7 times as long. FLAGS_use_stride_kernel=1 keeps them.
    """
    if "paddle" not in sys.modules:
        os.environ.setdefault("FLAGS_use_stride_kernel", "0")
        warnings.filterwarnings("ignore", message="No ccache found")  # only matters to who compiles Paddle extensions
    elif "FLAGS_use_stride_kernel" not in os.environ:
        warnings.warn(
            "paddle was imported before paddlevit, so its stride kernels stay on: on a CPU that makes training 2 to 3 "
            "times slower. Import paddlevit first, or set FLAGS_use_stride_kernel=0 in the environment.",
            stacklevel=3,
        )
    if mkl_passes_over_avx2():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")  # 0 leaves the choice to MKL
    if sys.platform == "linux" and os.environ.get("PADDLEVIT_KEEP_MEMORY") != "0":
        _keep_memory()


def mkl_passes_over_avx2() -> bool:
    """Whether this processor has AVX2, but MKL does not see it.

    Paddle's wheels for CPUs multiply matrices by Intel's MKL of 2019, which uses its SSE kernels on other makers'
    processors: on an AMD EPYC (Zen 2) a product of 1024 x 1024 takes 6.7 times as long as with the AVX2 kernels. With
    MKL_DEBUG_CPU_TYPE=5 in the environment MKL takes those; versions after 2020.0 do not know this variable.
    """
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False
    flags = processor.partition("\nflags")[2].partition("\n")[0].split()
    return "GenuineIntel" not in processor and {"avx2", "fma"} <= set(flags)


def _keep_memory() -> None:
    """Keep the process's memory: the C library gives large blocks back as soon as they are free, and a network asks for
    them again in the next layer. Clearing the new pages takes up to half of the time of an elementwise operation.
    """
    with contextlib.suppress(AttributeError):  # a C library without mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block gets pages of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
