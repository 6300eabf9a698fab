"""How a solve or a training run ended."""

import optimistix as optx


class RESULTS(optx.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Result codes of solvers and of training, an extension of `optimistix.RESULTS`.

    `successful` is the normal end: a solver converged, a run reached its target or made all its steps.
    """

    target_reached = "The target was reached."
    steps_done = "All steps were made."
    phase_done = "The condition that ends a phase was met."
    plateau = "The loss stopped decreasing."
    too_noisy = "The batch has become too noisy for its gradient (the norm test failed)."
    time_budget_spent = "The time budget was spent."
    stopped_by_callback = "A callback stopped the run."
    interrupted = "The run was interrupted; its last iterate is returned."
    nonfinite_loss = "The loss became non-finite (inf or nan); the best finite iterate is returned."
