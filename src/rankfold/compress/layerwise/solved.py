"""What a fit has found for a group of sites, in one file, so that an interrupted fit goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired

import torch
from torch import nn
from typing_extensions import TypedDict

from rankfold.compress.applying.layer import filled
from rankfold.compress.methods.method import Solution
from rankfold.compress.planning.fitted import Fitted, read, write
from rankfold.compress.planning.plan import Entry
from rankfold.run.disk.container import FAULTS, checked
from rankfold.sites import Form, Site

_SHOT = "|one shot"  # behind the name of a site: its factors of one shot


def write_solved(file: Path, solved: Mapping[str, Solution]) -> None:
    """Write ``solved``, by the names of the sites, to ``file``."""
    note = {
        name: {
            "error": solution.error,
            "certificate": solution.certificate,
            "note": solution.note,
            "few": solution.few,
            "losses": {form: values.tolist() for form, values in solution.losses.items()},
            "alone": solution.alone is solution.factors,
        }
        for name, solution in solved.items()
    }
    fitted = {name: Fitted(solution.factors) for name, solution in solved.items()}
    for name, made in solved.items():
        if made.alone is not None and not note[name]["alone"]:
            fitted[name + _SHOT] = Fitted(made.alone)
    write(file, fitted, note)


class _Solved(TypedDict):
    error: float
    certificate: str
    note: str
    few: NotRequired[bool]
    losses: dict[str, list[float]]
    alone: bool  # whether the factors of one shot are the factors


def read_solved(file: Path, current: nn.Module, group: Sequence[tuple[Site, Entry]]) -> dict[str, Solution] | None:
    """What an interrupted fit has left; None for no file, and for one that is not whole: it is fitted again."""
    if not file.exists():
        return None
    try:
        fitted, note = read(file)
        known, solved = checked(dict[str, _Solved], note), {}
        for site, entry in group:
            told = known[site.name]
            losses = {Form(form): torch.tensor(values, dtype=torch.float64) for form, values in told["losses"].items()}
            if any(values.dim() != 1 or len(values) <= site.max_rank(form) for form, values in losses.items()):
                raise ValueError(f"{site.name}: prices of fewer ranks than there are")
            filled(current, site, entry, fitted[site.name])  # refuses factors of other shapes
            shot = fitted[site.name] if told["alone"] else fitted.get(site.name + _SHOT)
            solved[site.name] = Solution(
                fitted[site.name].factors, told["error"], losses, told["certificate"], told["note"],
                None if shot is None else shot.factors, told.get("few", False),
            )  # fmt: skip
    except (OSError, *FAULTS):
        return None
    return solved
