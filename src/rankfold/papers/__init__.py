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
    "lorita-table-1a": ("table_1a", "reproduce"),
    "lorita-vit": ("vit", "plain"),
    "lorita-vit-augmented": ("vit", "augmented"),
    "lorita-cnn": ("cnn", "reproduce"),
    "lorita-table-2": ("table_2", "reproduce"),
    "lorita-table-3": ("table_3", "reproduce"),
    "lorita-beyond": ("beyond", "reproduce"),
    "cdln-factorization": ("recover_matrices", "factorization"),
    "cdln-completion": ("recover_matrices", "completion"),
    "cdln-sensing": ("recover_matrices", "sensing"),
    "cdln-alpha": ("recover_ablations", "alpha"),
    "cdln-start": ("recover_ablations", "start"),
    "cdln-depth": ("recover_ablations", "depth"),
    "cdln-svd": ("recover_ablations", "svd"),
    "cdln-movielens": ("recover_movielens", "reproduce"),
    "nrc-figure-1": ("nrc_figure_1", "reproduce"),
    "nrc-figure-1-full": ("nrc_figure_1", "full"),
    "nrc-figure-2": ("nrc_figure_2", "reproduce"),
    "nrc-figure-3": ("nrc_figure_3", "reproduce"),
    "nrc-figure-4": ("nrc_figure_4", "width"),
    "nrc-figure-5": ("nrc_figure_4", "depth"),
    "nrc-figure-5-full": ("nrc_figure_4", "depth_full"),
    "collapse-forecast": ("collapse_forecast", "reproduce"),
    "collapse-warmup": ("collapse_warmup", "reproduce"),
    "cdln-updates": ("cdln_updates", "reproduce"),
    "cdln-rate": ("recover_ablations", "rate"),
    "cdln-movielens-alpha": ("recover_movielens", "alpha"),
    "cdln-mlp": ("cdln_networks", "mlp"),
    "cdln-vit": ("cdln_networks", "vit"),
    "recovery-planted": ("recovery_planted", "reproduce"),
    "recovery-layers": ("recovery_layers", "reproduce"),
}


def reproduce(name: str, directory: str | Path, request: Request | None = None, tell: Tell | None = None) -> Outcome:
    """Train what the experiment ``name`` needs, and write its tables and figures into ``directory``.

    Resumable: the same call takes up an interrupted run, and reads back what it finds finished under
    ``directory/runs``. Raises ``ValueError`` for an unknown name, for an option that the experiment does not have, and
    for data that are not there.
    """
    from pathlib import Path

    from rankfold.papers.request import Request
    from rankfold.papers.writing import write
    from rankfold.pipeline import Tell

    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=1)
        meant = f", did you mean {near[0]}?" if near else ":"
        raise ValueError(f"unknown experiment {name!r}{meant} The names are {', '.join(sorted(EXPERIMENTS))}")
    module, function = EXPERIMENTS[name]
    experiment = getattr(import_module(f"rankfold.papers.{module}"), function)
    asked = request or Request()
    outcome = experiment(asked, Path(directory), tell or Tell())
    if asked.quick:
        small = (
            "Quick form, on small data that stand in for the paper's: it shows that it runs, nothing about the claim."
        )
        outcome = replace(outcome, title=f"{outcome.title} (quick form)", remarks=[*outcome.remarks, small])
    outcome = replace(outcome, about={"request": asked.to_dict()} | dict(outcome.about))
    write(name, outcome, Path(directory))
    return outcome
