"""The tables and figures of the papers, trained and drawn again: published numbers beside measured ones."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from rankfold.papers.cdln import experiments as _cdln
from rankfold.papers.collapse import experiments as _collapse
from rankfold.papers.dlrt import experiments as _dlrt
from rankfold.papers.index import Experiment, rows
from rankfold.papers.lorita import experiments as _lorita
from rankfold.papers.recovery import experiments as _recovery
from rankfold.run.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from rankfold.papers.request import Request
    from rankfold.papers.writing import Outcome
    from rankfold.pipeline import Tell

_OF = (_lorita, _cdln, _collapse, _dlrt, _recovery)
# imported when one is asked for, since they bring torch
EXPERIMENTS: dict[str, Experiment] = {each.name: each for of in _OF for each in of.EXPERIMENTS}
INDEX = rows(EXPERIMENTS.values(), [shown for of in _OF for shown in of.WITHOUT])


_WRITTEN = "result.json", "result.md"


def reproduce(name: str, directory: str | Path, request: Request | None = None, tell: Tell | None = None) -> Outcome:
    """Train what the experiment ``name`` needs, and write its tables and figures into ``directory``.

    Resumable: the same call takes up an interrupted run, and reads back what it finds finished under
    ``directory/runs``. Raises ``UsageError`` for an unknown name and for an option that the experiment does not have,
    and ``ValueError`` for data that are not there.
    """
    from pathlib import Path

    from rankfold.papers.request import Request
    from rankfold.run.claim import claimed
    from rankfold.run.disk.foreign import check_replaceable
    from rankfold.run.progress import shown

    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=1)
        meant = f": did you mean {near[0]}? The" if near else ": the"
        raise UsageError(f"there is no experiment {name!r}{meant} names are {', '.join(sorted(EXPERIMENTS))}")
    found = EXPERIMENTS[name]
    experiment = getattr(import_module(f"rankfold.papers.{found.module}"), found.function)
    asked = request or Request()
    check_replaceable(Path(directory), _WRITTEN, lambda held: {"experiment", "tables"} <= set(held), _WRITTEN[0])
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
