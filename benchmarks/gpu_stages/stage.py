"""What a stage is, and the table in which each registers itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOST = 16 << 20  # bytes of the weights that a stage brings back


@dataclass(frozen=True)
class Context:
    """Where a stage runs. ``dry``: at the smallest sizes that still take every branch. ``data``: arrays, or None;
    ``out``: where results go."""

    device: torch.device
    dry: bool
    deadline: float  # time.monotonic() at which the call ends
    data: Path | None = None
    out: Path | None = None

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def keep(self, name: str, weights: Mapping[str, Tensor]) -> str:
        """Write weights beside the results, halves where they are floats; in words what became of them.

        More than 16 MB are not written: they could not be sent back.
        """
        from safetensors.torch import save_file

        small = {
            key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
            for key, value in weights.items()
        }
        size = sum(value.numel() * value.element_size() for value in small.values())
        if size > MOST:
            return f"not kept: {size / 2**20:.1f} MB"
        if self.out is not None:
            save_file(small, self.out / f"{name}.safetensors")
        return f"{name}.safetensors, {size / 2**20:.1f} MB"


@dataclass(frozen=True)
class Stage:
    """``run`` returns figures for the JSON file; ``said`` among them is printed, ``wrong`` lists what is not as it
    should be. ``least``: minutes below which it is not begun; it uses what is left up to ``minutes``."""

    name: str
    minutes: float
    run: Callable[[Context], dict[str, Any]]
    least: float | None = None

    @property
    def says(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]

    @property
    def needs(self) -> float:
        return self.minutes if self.least is None else self.least


STAGES: dict[str, Stage] = {}


def stage(
    name: str, minutes: float, least: float | None = None
) -> Callable[[Callable[[Context], dict[str, Any]]], Any]:
    """Register the function as a stage that takes about so many minutes on one GPU, and at least ``least``."""

    def register(run: Callable[[Context], dict[str, Any]]) -> Any:
        STAGES[name] = Stage(name, minutes, run, least)
        return run

    return register
