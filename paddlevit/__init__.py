"""Train, fine-tune, evaluate and deploy HVT, CvT, HRFormer and PiT with PaddlePaddle."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import warnings

from paddlevit.runtime.settings import mkl_passes_over_avx2

__version__ = "0.1.0"

if importlib.util.find_spec("paddle") is None:
    raise ImportError(
        "paddlevit needs PaddlePaddle 3.x, which is not installed. For a CPU:  pip install 'paddlepaddle>=3.0'\n"
        "For a GPU:  pip install 'paddlepaddle-gpu>=3.0' with the package index for your CUDA version that "
        "https://www.paddlepaddle.org.cn/en/install/quick names"
    )

# Paddle's stride kernels make slices and transposes into views, and on a CPU every operator that then reads a view
# slower: a training step takes about 2.7 times as long. The flag is read once, when paddle is imported.
# FLAGS_use_stride_kernel=1 in the environment keeps them.
if "paddle" not in sys.modules:
    os.environ.setdefault("FLAGS_use_stride_kernel", "0")
elif "FLAGS_use_stride_kernel" not in os.environ:
    warnings.warn(
        "paddle was imported before paddlevit, so its stride kernels stay on: on a CPU that makes training 2 to 3 "
        "times slower. Import paddlevit first, or set FLAGS_use_stride_kernel=0 in the environment.",
        stacklevel=2,
    )

# MKL_DEBUG_CPU_TYPE=0 in the environment leaves the choice to MKL.
if mkl_passes_over_avx2():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")

# The C library gives large blocks back to the system as soon as they are free, and a network asks for them again in
# the next layer: clearing the new pages takes up to half of the time of an elementwise operation. So they are kept;
# PADDLEVIT_KEEP_MEMORY=0 in the environment leaves that as it was.
if sys.platform == "linux" and os.environ.get("PADDLEVIT_KEEP_MEMORY") != "0":
    with contextlib.suppress(AttributeError):  # a C library without mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block gets pages of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="No ccache found")  # only matters to who compiles Paddle extensions
    import paddle  # noqa: F401

from paddlevit.models import build_model, list_models

__all__ = ["__version__", "build_model", "list_models"]
