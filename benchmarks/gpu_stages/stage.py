"""What a stage is, and the table in which each registers itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Context:
    """Where a stage runs. ``dry``: at the smallest sizes that still take every branch. ``data``: arrays, or None."""

    device: torch.device
    dry: bool
    deadline: float  # time.monotonic() at which the call ends
    data: Path | None = None

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Stage:
    """``run`` returns figures for the JSON file; ``said`` among them is printed, ``wrong`` lists what is not as it
    should be."""

    name: str
    minutes: float
    run: Callable[[Context], dict[str, Any]]

    @property
    def says(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]


STAGES: dict[str, Stage] = {}


def stage(name: str, minutes: float) -> Callable[[Callable[[Context], dict[str, Any]]], Any]:
    """Register the function as a stage that takes about so many minutes on one GPU."""

    def register(run: Callable[[Context], dict[str, Any]]) -> Any:
        STAGES[name] = Stage(name, minutes, run)
        return run

    return register
