"""Checkpoints: one file that is always complete, written beside the old one and moved over it."""

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

FORMAT = 2


def save_checkpoint(path: str | os.PathLike, arrays: PyTree, history: dict[str, np.ndarray], header: dict) -> None:
    """Write atomically: a run killed at any moment leaves the old file or the new one, never half of one."""
    path = Path(path)
    leaves = {_name(key): np.asarray(_raw(leaf)) for key, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
    content = {f"state{key}": leaf for key, leaf in leaves.items()} | {f"history/{k}": v for k, v in history.items()}
    content["header"] = np.asarray(json.dumps(header | {"format": FORMAT}))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **content)  # pyright: ignore[reportArgumentType]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """What stands beside the arrays: phase and clocks."""
    return _read(path)[1]


def load_checkpoint(path: str | os.PathLike, like: PyTree) -> tuple[PyTree, dict[str, np.ndarray]]:
    """The arrays in the structure of `like`, and the history.

    **Errors:** `ValueError` if the file is no checkpoint, or of another model or optimizer.
    """
    content, _ = _read(path)
    history = {key.removeprefix("history/"): v for key, v in content.items() if key.startswith("history/")}
    stored = {key.removeprefix("state"): v for key, v in content.items() if not key.startswith("history/")}
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    expected = {_name(key): leaf for key, leaf in paths}
    if set(expected) != set(stored):
        odd = sorted(set(expected) ^ set(stored))[:3]
        raise ValueError(f"{path} belongs to another model or optimizer: the entries {odd} do not match.")
    for key, leaf in expected.items():
        raw = _raw(leaf)
        if stored[key].shape != raw.shape or stored[key].dtype != raw.dtype:
            raise ValueError(
                f"{path} belongs to another run: {key} is {stored[key].dtype}{stored[key].shape} there and "
                f"{raw.dtype}{raw.shape} here."
            )
    return jax.tree.unflatten(treedef, [_like(stored[_name(key)], leaf) for key, leaf in paths]), history


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {key: file[key] for key in file.files}
        header = json.loads(str(content.pop("header")))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)} is not a checkpoint of sciml_opt: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {header.get('format')}, this version reads {FORMAT}.")
    return content, header


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(stored: np.ndarray, leaf: Any) -> Array:
    """Stored numbers as an array, or as random keys where `leaf` is one."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(leaf))
    return jnp.asarray(stored)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path)
