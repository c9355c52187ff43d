"""Which of very many entries: one bit for each, drawn and read a chunk at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 20  # entries that are drawn at a time; a multiple of 8


@dataclass(frozen=True, eq=False)
class Bits:
    """``packed``: eight entries in a byte; ``count``: how many entries there are."""

    packed: np.ndarray
    count: int

    def __getitem__(self, these: slice) -> np.ndarray:
        """(length,), bool."""
        first = these.start // 8
        found = np.unpackbits(self.packed[first : -(-these.stop // 8)])
        return found[these.start - 8 * first : these.stop - 8 * first].view(bool)

    def chunks(self) -> list[slice]:
        return chunks(self.count)

    def among(self, kept: Bits | None) -> Bits:
        """Of entries of which ``kept`` are numbered here: the same by the numbers of all."""
        if kept is None:
            return self
        found, at = [], 0
        for these in kept.chunks():
            chunk = kept[these].copy()
            size = int(chunk.sum())
            chunk[chunk] = self[at : at + size]
            found.append(np.packbits(chunk))
            at += size
        return Bits(np.concatenate(found), kept.count)

    def others(self, kept: Bits | None = None) -> Bits:
        """Those that are not among these, of all or of ``kept``."""
        turned = ~self.packed if kept is None else ~self.packed & kept.packed
        if kept is None and self.count % 8:
            turned[-1] &= 0xFF << (8 - self.count % 8) & 0xFF
        return Bits(turned, self.count)


def chunks(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def drawn(count: int, size: int, rng: np.random.Generator) -> Bits:
    """``size`` of ``count`` entries, as many of each chunk: chance decides within a chunk only."""
    found = []
    for these in chunks(count):
        share = these.stop * size // count - these.start * size // count
        chunk = np.zeros(these.stop - these.start, dtype=bool)
        chunk[rng.permutation(len(chunk))[:share]] = True
        found.append(np.packbits(chunk))
    return Bits(np.concatenate(found), count)


def signs(count: int, rng: np.random.Generator) -> Bits:
    """Heads or tails for each entry: what ``rng.integers(0, 2, count, dtype=np.int8)`` draws."""
    drawn = [np.packbits(rng.integers(0, 2, t.stop - t.start, dtype=np.int8).view(bool)) for t in chunks(count)]
    return Bits(np.concatenate(drawn), count)
