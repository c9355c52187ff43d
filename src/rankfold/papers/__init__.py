"""The tables and figures of the papers, trained and drawn again: published numbers beside measured ones."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rankfold.papers.request import Request
    from rankfold.papers.writing import Outcome
    from rankfold.pipeline import Tell

# name → module of this package and its function; imported when it is asked for, since it brings torch
EXPERIMENTS = {
    "lorita-table-1a": ("lorita.table_1a", "reproduce"),
    "lorita-vit": ("lorita.vit", "plain"),
    "lorita-vit-augmented": ("lorita.vit", "augmented"),
    "lorita-cnn": ("lorita.cnn", "reproduce"),
    "lorita-table-2": ("lorita.table_2", "reproduce"),
    "lorita-table-3": ("lorita.table_3", "reproduce"),
    "lorita-beyond": ("lorita.beyond", "reproduce"),
    "cdln-factorization": ("cdln.matrices", "factorization"),
    "cdln-completion": ("cdln.matrices", "completion"),
    "cdln-sensing": ("cdln.matrices", "sensing"),
    "cdln-alpha": ("cdln.ablations", "alpha"),
    "cdln-start": ("cdln.ablations", "start"),
    "cdln-depth": ("cdln.ablations", "depth"),
    "cdln-svd": ("cdln.ablations", "svd"),
    "cdln-movielens": ("cdln.movielens", "reproduce"),
    "nrc-figure-1": ("collapse.figure_1", "reproduce"),
    "nrc-figure-1-full": ("collapse.figure_1", "full"),
    "nrc-figure-2": ("collapse.figure_2", "reproduce"),
    "nrc-figure-3": ("collapse.figure_3", "reproduce"),
    "nrc-figure-4": ("collapse.figure_4", "width"),
    "nrc-figure-5": ("collapse.figure_4", "depth"),
    "nrc-figure-5-full": ("collapse.figure_4", "depth_full"),
    "collapse-forecast": ("collapse.forecast", "reproduce"),
    "collapse-warmup": ("collapse.warmup", "reproduce"),
    "cdln-updates": ("cdln.updates", "reproduce"),
    "cdln-rate": ("cdln.ablations", "rate"),
    "cdln-movielens-alpha": ("cdln.movielens", "alpha"),
    "cdln-mlp": ("cdln.networks", "mlp"),
    "cdln-vit": ("cdln.networks", "vit"),
    "ways-to-low-rank": ("dlrt.ways", "reproduce"),
    "condlr-mnist": ("dlrt.condlr", "reproduce"),
    "recovery-planted": ("recovery.planted", "reproduce"),
    "recovery-phase": ("recovery.phase", "reproduce"),
    "recovery-layers": ("recovery.layers", "reproduce"),
}


def reproduce(name: str, directory: str | Path, request: Request | None = None, tell: Tell | None = None) -> Outcome:
    """Train what the experiment ``name`` needs, and write its tables and figures into ``directory``.

    Resumable: the same call takes up an interrupted run, and reads back what it finds finished under
    ``directory/runs``. Raises ``ValueError`` for an unknown name, for an option that the experiment does not have, and
    for data that are not there.
    """
    from pathlib import Path

    from rankfold.papers.request import Request
    from rankfold.run.claim import claimed
    from rankfold.run.progress import shown

    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=1)
        meant = f", did you mean {near[0]}?" if near else ":"
        raise ValueError(f"unknown experiment {name!r}{meant} The names are {', '.join(sorted(EXPERIMENTS))}")
    module, function = EXPERIMENTS[name]
    experiment = getattr(import_module(f"rankfold.papers.{module}"), function)
    asked = request or Request()
    with shown(tell) as told, claimed(directory, what=f"reproduce {name}"):
        return _written(name, experiment(asked, Path(directory), told), asked, Path(directory))


def _written(name: str, outcome: Outcome, asked: Request, directory: Path) -> Outcome:
    from rankfold.papers.writing import write

    if asked.quick:
        small = (
            "Quick form, on small data that stand in for the paper's: it shows that it runs, nothing about the claim."
        )
        outcome = replace(outcome, title=f"{outcome.title} (quick form)", remarks=[*outcome.remarks, small])
    outcome = replace(outcome, about={"request": asked.to_dict()} | dict(outcome.about))
    write(name, outcome, directory)
    return outcome
