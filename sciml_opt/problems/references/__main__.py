"""`python -m sciml_opt.problems.references [NAME ...]`: makes the tables anew, and prints errors."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ..._check import one_of
from ._allen_cahn import allen_cahn
from ._cavity import cavity, navier_stokes2d_c
from ._darcy2d import darcy2d
from ._kdv import kdv
from ._kuramoto_sivashinsky import kuramoto_sivashinsky
from ._table import DATA


class Generator(NamedTuple):
    """`fine()` is stored; its error is its distance to `coarse()`, over `outputs`."""

    fine: Callable[[], dict[str, np.ndarray]]
    coarse: Callable[[], dict[str, np.ndarray]]
    outputs: tuple[str, ...] = ("u",)


GENERATORS = {
    "allen_cahn": Generator(allen_cahn, partial(allen_cahn, resolution=2)),
    "cavity": Generator(cavity, partial(cavity, n=48), ("u", "v")),
    "darcy2d": Generator(darcy2d, partial(darcy2d, n=48)),
    "kdv": Generator(kdv, partial(kdv, resolution=2)),
    "kuramoto_sivashinsky": Generator(kuramoto_sivashinsky, partial(kuramoto_sivashinsky, resolution=2)),
    "navier_stokes2d_c": Generator(navier_stokes2d_c, partial(navier_stokes2d_c, n=48), ("u", "v", "p")),
}


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray], outputs: tuple[str, ...]) -> float:
    """`|a - b| / |b|` over all outputs together, in L2."""
    a_all, b_all = (np.stack([table[output] for output in outputs]) for table in (a, b))
    return float(np.linalg.norm(a_all - b_all) / np.linalg.norm(b_all))


def main(names: list[str]) -> None:
    for name in [one_of("NAME", name, GENERATORS) for name in names] or GENERATORS:
        began = time.process_time()
        generator = GENERATORS[name]
        fine = generator.fine()
        error = distance(generator.coarse(), fine, generator.outputs)
        np.savez_compressed(DATA / f"{name}.npz", **{**fine, "error": np.array(error)})  # pyright: ignore[reportArgumentType]
        size = (DATA / f"{name}.npz").stat().st_size / 1024
        print(f"{name}: relative L2 error {error:.1e}, {size:.0f} kB, {time.process_time() - began:.1f} CPU s")


if __name__ == "__main__":
    main(sys.argv[1:])
