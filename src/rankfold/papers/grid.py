"""A grid of small experiments: each cell once, several at a time, read back when it is there."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from rankfold.pipeline import Tell
from rankfold.run.container import parsed
from rankfold.run.files import write_atomically

FORMAT = 2
Work = Callable[[Any, Path], dict[str, Any]]  # a frozen dataclass and a place of its own → plain values


def cells(cases: Sequence[Any], work: Work, directory: Path, jobs: int, tell: Tell) -> list[dict[str, Any]]:
    """``work`` done for every case (a frozen dataclass), in the order given; finished ones are read from ``directory``.

    With several ``jobs`` each has a process and one thread. Beside the values of ``work``: ``cpu_seconds`` and
    ``wall_seconds``. Raises ``ValueError`` for a damaged file, which names it.
    """
    waiting = [case for case in cases if not (_place(case, work, directory) / "result.json").exists()]
    if len(waiting) < len(cases):
        tell.say(f"{len(cases) - len(waiting)} of {len(cases)} cells are read back from {directory}")
    if jobs == 1:
        for number, case in enumerate(waiting, start=1):
            _do(case, work, directory)
            tell.progress("cells", number, len(waiting))
    elif waiting:
        done = Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(_do_alone)(case, work, directory) for case in waiting
        )
        for number, _ in enumerate(done, start=1):
            tell.progress("cells", number, len(waiting))
    return [_read(_place(case, work, directory) / "result.json") for case in cases]


def time_remark(found: Sequence[dict[str, Any]]) -> str:
    """What the cells cost, in a sentence."""
    return f"Processor time of all cells: {sum(value['cpu_seconds'] for value in found) / 60:.1f} minutes."


def _place(case: Any, work: Work, directory: Path) -> Path:
    kind = f"{work.__module__}.{work.__qualname__}"  # experiments may share the kind of case and the directory
    text = json.dumps({"format": FORMAT, "kind": kind} | asdict(case), sort_keys=True)
    return directory / f"{case.title}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _do_alone(case: Any, work: Work, directory: Path) -> None:
    torch.set_num_threads(1)
    _do(case, work, directory)


def _do(case: Any, work: Work, directory: Path) -> None:
    place = _place(case, work, directory)
    began, wall = time.process_time(), time.perf_counter()
    values = work(case, place)
    times = {"cpu_seconds": time.process_time() - began, "wall_seconds": time.perf_counter() - wall}
    text = json.dumps(plain({"case": asdict(case)} | values | times), indent=1) + "\n"
    write_atomically(place / "result.json", text.encode())


def _read(file: Path) -> dict[str, Any]:
    try:
        return parsed(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete {file.parent} to compute it again") from None


def plain(value: Any) -> Any:
    """``value`` with numbers that JSON does not know as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
