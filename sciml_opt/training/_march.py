"""`march`: time marching, one slab after the other."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from .._check import count, number
from .._results import RESULTS
from ..models import TimeSlabs
from ..objective import Objective
from ._fit import FitResult, fit
from ._record import Record


def march(
    model: Any,
    objective: Objective,
    optimizer: Any,
    data: PyTree,
    restart: Callable[[Any, PyTree], PyTree],
    *,
    slabs: int,
    length: float,
    axis: int = -1,
    metric: Callable[[Any], Any] | None = None,
    **options: Any,
) -> FitResult:
    """Train slab after slab in time, each from the solution at the end of the one before.

        u(x, t) = u_j(x, t - j length),     j = floor(t / length),     u_{j+1}(x, 0) = u_j(x, length)

    What a network finds hard is a long time: errors of the start travel, and later times are fitted before earlier ones
    are right. Each slab is a short problem of the same form, so that one compiled program serves all; its model starts
    from the parameters of the one before. The equation must not depend on the time explicitly.

    **Arguments:**

    - `model`: of the first slab, in the local time of a slab, 0 to `length`.
    - `objective`, `optimizer`: as in `fit`; phases too.
    - `data`: the batch of the first slab, in local time.
    - `restart`: `(model, data) -> data` of the next slab, of the same shapes: `data` with the initial values taken from
      `model` at the local time `length`. It is jitted.
    - `slabs`, `length`: how many, and how long in time.
    - `axis`: the component of a point that is the time.
    - `metric`: `model -> scalar` error of the whole, measured at the end.
    - `options`: of `fit`, for each slab: `steps`, `until`, `where`, `progress`, ...

    **Returns:** a `FitResult`: `model` is a `so.models.TimeSlabs` on the global time; `history` has one entry `slab`
    more, and the slabs one after the other; `loss` is the largest of the slabs. A slab that becomes non-finite, is
    interrupted or stopped by its callback ends the run, with that status: the model is then that of the slabs so far.

    **Errors:** `ValueError` for a checkpoint, which holds a single run.

    **Cost:** that of `slabs` calls of `fit` of one compiled program.

    **Source:** arXiv:2106.07971 (adaptive time marching), arXiv:2109.01050 (sequence to sequence).

    **Example:**

    ```python
    def restart(model, batch):
        x, _ = batch["initial"]
        return batch | {"initial": (x, jax.vmap(lambda x: model(x.at[-1].set(0.25)))(x))}

    result = so.march(model, objective, so.levenberg_marquardt(), batch, restart, slabs=4, length=0.25, steps=200)
    result.model(jnp.array([0.3, 0.9]))  # the fourth slab
    ```
    """
    slabs = count("slabs", slabs)
    number("length", length, above=0)
    if options.get("checkpoint") is not None or options.get("seeds") is not None:
        raise ValueError("march takes neither checkpoint nor seeds; call fit, or march once a seed.")
    restart = eqx.filter_jit(restart)
    results: list[FitResult] = []
    for slab in range(slabs):
        results.append(fit(model, objective, optimizer, data, **options))
        ends = (RESULTS.nonfinite_loss, RESULTS.interrupted, RESULTS.stopped_by_callback)
        if any(bool(results[-1].status == end) for end in ends):
            break
        model = results[-1].model
        if slab + 1 < slabs:
            data = restart(model, data)
    last = results[-1]
    whole, best = (
        TimeSlabs([getattr(result, name) for result in results], length, axis) for name in ("model", "best_model")
    )
    return last._replace(
        model=whole,
        best_model=best,
        best_loss=float(np.max([result.best_loss for result in results])),
        loss=float(np.max([result.loss for result in results])),  # NaN if one is
        error=float("nan") if metric is None else float(eqx.filter_jit(metric)(whole)),
        steps=sum(result.steps for result in results),
        history=_joined([result.history for result in results]),
        compile_seconds=sum(result.compile_seconds for result in results),
        train_seconds=sum(result.train_seconds for result in results),
    )


def _joined(histories: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The slabs one after the other, with their number; the seconds go on."""
    record = Record()
    for slab, history in enumerate(histories):
        if history:  # there is none if the slab was interrupted while it compiled
            seconds = record.seconds + history["seconds"]
            own = {"seconds": seconds, "slab": np.full(len(seconds), slab, np.int32)}
            record.chunks.append(history | own)
            record.seconds = seconds[-1]
    return record.arrays()
