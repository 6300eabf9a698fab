"""Damped linear solves that lineax lacks: one factorisation, several right-hand sides, and a ladder when it fails."""

from ._cholesky import damped_cholesky as damped_cholesky
from ._damped_solve import DampedSolve as DampedSolve
from ._damped_solve import Scaling as Scaling
from ._damped_solve import Solve as Solve
from ._damped_solve import factorize as factorize
