"""Entries that lie in files: the operator of a table that is never in memory as a whole.

Its measurements are `lazy`, every product is a pass over the files a block at a time, and a part of them is one bit for
each. The products are those of `Entries`, block by block.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankfold.recover.measurements.arrays import Array
from rankfold.recover.measurements.bits import Bits, drawn
from rankfold.recover.measurements.lazy import Block, Lazy
from rankfold.recover.measurements.operators import BLOCK, ByRows, Entries, blocks, products

JUDGED = 1 << 19  # entries held out of very many at most: these are in memory


@dataclass(frozen=True, eq=False)
class Files:
    """A table by rows: where each row starts (m + 1,), and the columns (count,) int32 and values of its entries, which
    may be memory-mapped. ``place``: a folder for scratch, by default that of the system."""

    shape: tuple[int, int]
    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    place: Path | None = None


class StreamedEntries(Entries):
    """Those entries of ``files`` that ``kept`` has, or all. Memory: a bit for each entry, and ``size`` of them."""

    def __init__(self, files: Files, kept: Bits | None = None, size: int = BLOCK) -> None:
        self.files, self.shape, self._kept, self._size = files, files.shape, kept, size
        self._kind = np.empty(0)
        self.blocks, self._starts = _within(blocks(files.starts, max(size, files.shape[1])), files.starts, kept)
        self.count = int(self._starts[-1])
        self.scale = self.count / (self.shape[0] * self.shape[1])
        self._last: tuple[Block, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def indices(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._last is None or self._last[0] is not block:  # what is summed into a product is multiplied with it next
            starts = (self._starts[block.rows.start : block.rows.stop + 1] - block.entries.start).astype(np.int32)
            rows = np.repeat(np.arange(block.rows.start, block.rows.stop, dtype=np.int32), np.diff(starts))
            self._last = block, (rows, self._read(self.files.columns, block), starts)
        return self._last[1]

    def _read(self, column: np.ndarray, block: Block) -> np.ndarray:
        found = np.array(column[block.stored])
        return found if self._kept is None else found[self._kept[block.stored]]

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        columns = np.zeros(self.shape[1], dtype=np.int64)
        for block in self.blocks:
            columns += np.bincount(self._read(self.files.columns, block), minlength=self.shape[1])
        return np.diff(self._starts), columns

    @property
    def values(self) -> Lazy:
        """Of its entries."""
        return Lazy(self.blocks, lambda block: self._read(self.files.values, block).astype(np.float64), np.float64)

    def ones(self, kind: Array) -> Lazy:
        return Lazy(self.blocks, lambda b: np.ones(b.entries.stop - b.entries.start, kind.dtype), kind.dtype)

    def stored(self, y: Lazy) -> Lazy:
        """The numbers ``y`` in a nameless file, for what is asked for many times."""
        with tempfile.TemporaryFile(dir=self.files.place) as file:
            for block in y.blocks:
                file.write(y.of(block).tobytes())
            file.flush()
            held = np.memmap(file, dtype=y.dtype, mode="r", shape=y.shape).view(np.ndarray)
        return Lazy(self.blocks, lambda block: held[block.entries], y.dtype)

    def push(self, left: Array, right: Array) -> Lazy:
        turned = np.ascontiguousarray(right.T)

        def of(block: Block) -> np.ndarray:
            rows, columns, _ = self.indices(block)
            return products(left, turned, rows, columns)

        return Lazy(self.blocks, of, left.dtype)

    def adjoint(self, y: Lazy) -> ByRows:
        return ByRows(self, y.of, y.dtype)

    def part(self, which: np.ndarray) -> tuple[Entries, Any]:
        raise NotImplementedError("entries in files are split by apart, which reads their bits")

    def apart(
        self, y: Lazy, size: int, rng: np.random.Generator
    ) -> tuple[StreamedEntries, Lazy, tuple[Entries, Array]]:
        """Without ``size`` entries that are drawn, and these, at most ``JUDGED``, in memory; ``y`` are the values."""
        held = drawn(self.count, min(size, JUDGED), rng).among(self._kept)
        part = StreamedEntries(self.files, held.others(self._kept), self._size)
        judge = StreamedEntries(self.files, held, self._size)
        parts = [(*judge.indices(block)[:2], judge.values.of(block)) for block in judge.blocks]
        rows, columns, values = (np.concatenate(one) for one in zip(*parts, strict=True))
        return part, part.values, (Entries(self.shape, rows, columns), values)


def _within(found: list[Block], starts: np.ndarray, kept: Bits | None) -> tuple[list[Block], np.ndarray]:
    """Blocks of all entries, and where rows start, as those of the ``kept`` ones."""
    own = np.array(starts, dtype=np.int64)
    if kept is None:
        return found, own
    numbered, at = [], 0
    for block in found:
        before = np.concatenate(([0], np.cumsum(kept[block.stored])))
        rows = slice(block.rows.start, block.rows.stop + 1)
        own[rows] = at + before[starts[rows] - block.stored.start]
        numbered.append(Block(block.rows, slice(at, at + int(before[-1])), block.stored))
        at += int(before[-1])
    return numbered, own
