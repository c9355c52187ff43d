"""Entries in files beside entries in memory: `python benchmarks/recover_files.py FOLDER [count [noise]]`.

A matrix of rank 10 with Gaussian factors (28,000 × 22,000 up to two million entries, else 60,000 × 50,000) is written
into FOLDER once, then fitted twice, each time in a process of its own: seconds of processor, peak of anonymous memory
above what the process had before the fit, and the relative error on 100,000 random cells.
"""

from __future__ import annotations

import sys
import time
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pandas as pd

from rankfold.recover import LowRank, map_entries

RANK, BOUND = 10, 20


def truth(count: int) -> tuple[np.ndarray, np.ndarray]:
    m, n = (28_000, 22_000) if count <= 2_000_000 else (60_000, 50_000)
    rng = np.random.default_rng(0)
    return rng.standard_normal((m, RANK)), rng.standard_normal((n, RANK))


def written(folder: Path, count: int, noise: float) -> Path:
    file = folder / f"{count}-{noise:g}.parquet"
    if not file.exists():
        (left, right), rng = truth(count), np.random.default_rng(1)
        cells = np.unique(rng.integers(0, len(left) * len(right), int(1.01 * count)))
        cells = np.sort(rng.permutation(cells)[:count])
        rows, columns = cells // len(right), cells % len(right)
        parts = zip(np.array_split(rows, 20), np.array_split(columns, 20), strict=True)
        values = np.concatenate([np.einsum("ij,ij->i", left[a], right[b]) for a, b in parts])
        values += noise * rng.standard_normal(len(values))
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"row": rows, "column": columns, "value": values}).to_parquet(file)
    return file


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def fitted(file: Path, count: int, in_files: bool) -> None:
    entries = map_entries(file, file.with_suffix(""))
    given = entries if in_files else entries.take(np.arange(len(entries)))
    idle, peak, ended = anonymous(), [0], Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    Thread(target=watch, daemon=True).start()
    begun = time.process_time()
    found = LowRank(BOUND).fit(given)
    spent = time.process_time() - begun
    ended.set()
    left, right = truth(count)
    rng = np.random.default_rng(2)
    rows, columns = (rng.integers(0, len(side), 100_000) for side in (left, right))
    # a row or column without any entry has no number in the file: of so many none is
    assert entries.shape == (len(left), len(right))
    meant = np.einsum("ij,ij->i", left[rows], right[columns])
    error = np.linalg.norm(found.at(rows, columns) - meant) / np.linalg.norm(meant)
    print(
        f"  {'in files' if in_files else 'in memory'}: {spent:.1f} s of processor, {(peak[0] - idle) / 1e6:.0f} MB, "
        f"rank {found.rank_}, error {error:.3g}",
        flush=True,
    )


if __name__ == "__main__":
    place, count, noise = Path(sys.argv[1]), int((sys.argv[2:] or [2_000_000])[0]), float((sys.argv[3:] or [0.0])[0])
    file = written(place, count, noise)
    print(f"{count:,} entries, noise {noise:g}")
    for in_files in (True, False):
        process = get_context("spawn").Process(target=fitted, args=(file, count, in_files))
        process.start()
        process.join()
