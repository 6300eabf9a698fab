"""The history of a run, step by step, as numpy arrays."""

from typing import Any

import numpy as np


class Record:
    """Grows chunk by chunk; `arrays()` is the history, `header()` the clocks, for a checkpoint."""

    def __init__(self):
        self.chunks: list[dict[str, np.ndarray]] = []
        self.seconds = self.wall = self.compile_seconds = 0.0

    def add(self, records: dict[str, Any], done: int, phase: int, wall: float, seconds: float) -> None:
        """Append the first `done` rows of a chunk that took `seconds` (training clock) and `wall` seconds."""
        columns = {"loss": records["loss"], "error": records["error"]}
        columns |= {f"loss/{name}": values for name, values in records["terms"].items()}
        if records["info"] is not None:
            columns |= {name: values for name, values in records["info"]._asdict().items() if name != "loss"}
        chunk = {name: np.asarray(values)[:done] for name, values in columns.items()}
        chunk["phase"] = np.full(done, phase, np.int32)
        chunk["seconds"] = self.seconds + seconds * np.arange(1, done + 1) / max(done, 1)
        self.chunks.append(chunk)
        self.seconds += seconds
        self.wall += wall

    def arrays(self) -> dict[str, np.ndarray]:
        names = dict.fromkeys(name for chunk in self.chunks for name in chunk)
        merged = {
            name: np.concatenate([chunk.get(name, np.full(len(chunk["loss"]), np.nan)) for chunk in self.chunks])
            for name in names
        }
        self.chunks = [merged] if merged else []
        return dict(merged)

    def header(self) -> dict[str, float]:
        return {"seconds": self.seconds, "wall": self.wall, "compile_seconds": self.compile_seconds}

    @classmethod
    def restore(cls, header: dict[str, Any], history: dict[str, np.ndarray]) -> "Record":
        record = cls()
        record.seconds, record.wall = header["seconds"], header["wall"]
        record.compile_seconds = header["compile_seconds"]
        record.chunks = [history] if history else []
        return record
