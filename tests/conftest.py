"""Test session set-up: float64, strict promotion, one LAPACK thread, no window, and a bound on compiled programs held."""

import gc
import os
import resource
import sys
from pathlib import Path

# Before jax (and with it numpy) is imported. LAPACK threads on small matrices slow a busy machine many times over.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

MEMORY_LIMIT = 3 * 2**30  # bytes


def resident_memory() -> int:
    """Resident memory of this process in bytes; where the system has no /proc, its peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.fixture(autouse=True)
def bounded_memory():
    """Drops compiled programs once they fill the memory: every distinct closure keeps one alive."""
    yield
    if resident_memory() > MEMORY_LIMIT:
        jax.clear_caches()
        gc.collect()
