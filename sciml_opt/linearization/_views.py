"""Which entries of the parameter vector a point-independent array shows."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

RUNS = 64  # stretches of neighbours up to which a view is read by slices


class View:
    """An array of distinct entries of the parameter vector (leaves raveled and concatenated), held as their indices.

    Hashable by value. Views of a few stretches, such as whole leaves, are read and written by slices.
    """

    def __init__(self, indices: np.ndarray):
        self.indices = np.asarray(indices, np.int64 if indices.size and indices.max() > 2**31 - 1 else np.int32)
        self.shape, self.size = self.indices.shape, self.indices.size
        self.start = int(self.indices.min()) if self.size else 0
        self.stop = int(self.indices.max()) + 1 if self.size else 0
        flat = self.indices.reshape(-1)
        self.contiguous = self.stop - self.start == self.size and bool(np.all(flat[1:] > flat[:-1]))
        breaks = np.flatnonzero(np.diff(flat) != 1) + 1
        edges = np.concatenate([[0], breaks, [self.size]]) if self.size else np.zeros(1, int)
        self.runs = None  # (offset, start, length) of each stretch of neighbours, if they are few
        if len(edges) - 1 <= RUNS:
            self.runs = tuple((int(a), int(flat[a]), int(b - a)) for a, b in itertools.pairwise(edges))
        self._hash = hash((self.shape, self.start, None if self.contiguous else self.indices.tobytes()))

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        if not isinstance(other, View) or (self.shape, self.start, self.stop) != (other.shape, other.start, other.stop):
            return False
        return self.contiguous == other.contiguous and (self.contiguous or np.array_equal(self.indices, other.indices))

    def __repr__(self):
        return f"View(shape={self.shape}, entries={self.start}..{self.stop - 1})"

    @property
    def upright(self) -> bool:
        """Whether the entries of a matrix run along its rows, as those of a weight do and of its transpose do not."""
        rows, columns = self.shape
        if rows == 1 or columns == 1:
            return rows == 1
        return bool(self.indices[0, 1] - self.indices[0, 0] <= self.indices[1, 0] - self.indices[0, 0])

    @property
    def T(self) -> "View":
        return View(self.indices.T)

    def read(self, flat: Any) -> Any:
        """The entries of a flat vector, or of the last axis of an array."""
        if not self.runs:  # many stretches, or none
            part = flat[..., self.indices.reshape(-1)]
        else:
            pieces = [flat[..., start : start + length] for _, start, length in self.runs]
            part = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)
        return part.reshape(*flat.shape[:-1], *self.shape)

    def overlaps(self, other: "View") -> bool:
        if self.stop <= other.start or other.stop <= self.start:
            return False
        if self.contiguous and other.contiguous:
            return True
        return bool(np.intersect1d(self.indices, other.indices).size)


def leaf_views(sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The indices of every parameter leaf."""
    out, start = [], 0
    for shape in sizes:
        size = int(np.prod(shape))
        out.append(np.arange(start, start + size).reshape(shape))
        start += size
    return out


def propagate(eqn, operands: Sequence, views: dict) -> list[np.ndarray] | None:
    """The views that an equation yields, if it only rearranges or selects entries; `None` otherwise."""
    name, p = eqn.primitive.name, eqn.params
    known = [None if isinstance(v, jex.Literal) else views.get(v) for v in operands]
    if not known or known[0] is None:
        return None
    x = known[0]
    if name == "transpose":
        return [x.transpose(p["permutation"])]
    if name == "reshape" and p.get("dimensions") is None:
        return [x.reshape(p["new_sizes"])]
    if name in ("squeeze", "expand_dims"):
        return [x.reshape(eqn.outvars[0].aval.shape)]
    if name == "broadcast_in_dim" and eqn.outvars[0].aval.size == x.size:
        return [x.reshape(eqn.outvars[0].aval.shape)]
    if name in ("convert_element_type", "copy", "copy_p", "optimization_barrier") and len(operands) == 1:
        return [x]
    if name == "slice":
        strides = p["strides"] or (1,) * x.ndim
        return [x[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]]
    if name == "dynamic_slice" and all(isinstance(v, jex.Literal) for v in operands[1:]):
        limits = [n - size for n, size in zip(x.shape, p["slice_sizes"], strict=True)]
        starts = [int(np.clip(v.val, 0, limit)) for v, limit in zip(operands[1:], limits, strict=True)]
        return [x[tuple(slice(s, s + n) for s, n in zip(starts, p["slice_sizes"], strict=True))]]
    if name == "rev":
        return [np.flip(x, p["dimensions"])]
    if name == "split":
        return np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"])
    parts = [k for k in known if k is not None]
    if name == "concatenate" and len(parts) == len(known):
        joined = np.concatenate(parts, p["dimension"])
        return [joined] if np.unique(joined).size == joined.size else None  # of distinct entries
    return None


def assemble(parts: Sequence[tuple[View, Any]], size: int) -> Any:
    """Values on their entries (along the last axis), summed into an array whose last axis has the given size."""
    dtype, lead = parts[0][1].dtype, parts[0][1].shape[:-1]
    pieces = [
        (start, length, values[..., offset : offset + length])
        for view, values in parts
        for offset, start, length in view.runs or ()
    ]
    pieces.sort(key=lambda piece: piece[0])
    ends = [0, *(start + length for start, length, _ in pieces)]
    if all(view.runs is not None for view, _ in parts) and all(p[0] >= e for p, e in zip(pieces, ends, strict=False)):
        row, end = [], 0  # side by side: one copy
        for start, length, values in pieces:
            if start > end:
                row.append(jnp.zeros((*lead, start - end), dtype))
            row.append(values)
            end = start + length
        if end < size:
            row.append(jnp.zeros((*lead, size - end), dtype))
        return row[0] if len(row) == 1 else jnp.concatenate(row, axis=-1)
    total = jnp.zeros((*lead, size), dtype)
    for view, values in parts:
        where = slice(view.start, view.stop) if view.contiguous else view.indices.reshape(-1)
        total = total.at[..., where].add(values)
    return total
