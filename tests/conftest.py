"""Set-up of the tests: float64, strict promotion, one LAPACK thread, no windows, a bound on compiled programs held."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# Compiling is what the tests do: the older emitters take 60 % of the time. XLA aborts at flags that it does not know.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# Before jax (and with it numpy) is imported. LAPACK threads on small matrices slow a busy machine many times over.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:  # compiling is what the tests do: it halves the time
    jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

MEMORY_LIMIT = 3 * 2**30  # bytes


def resident_memory() -> int:
    """Resident memory of this process in bytes; 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0


@pytest.fixture(autouse=True)
def bounded_memory():
    """Drops compiled programs once they fill the memory: every distinct closure keeps one alive."""
    yield
    if resident_memory() > MEMORY_LIMIT:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def type_checks(request):
    """Off where a test is about the errors that a user sees, who has no run-time type checker."""
    off = request.node.get_closest_marker("bad_input") is not None
    jaxtyping.config.update("jaxtyping_disable", off)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
