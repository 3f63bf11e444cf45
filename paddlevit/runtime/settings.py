"""What has to be known of the processor before Paddle is imported."""

from __future__ import annotations

from pathlib import Path


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
