"""Objectives by name."""

from __future__ import annotations

from difflib import get_close_matches

from rankfold.objectives.base import Objective
from rankfold.objectives.evaluation import ObjectiveError
from rankfold.objectives.kinds.classification import Classification, TokenClassification
from rankfold.objectives.kinds.embedding import Embedding
from rankfold.objectives.kinds.language import CausalLanguageModel, MaskedLanguageModel
from rankfold.objectives.kinds.multilabel import MultiLabel
from rankfold.objectives.kinds.regression import Regression
from rankfold.objectives.kinds.teacher import Teacher

BUILT_IN: tuple[Objective, ...] = (
    Classification(), Classification(areas=True, name="segmentation"), TokenClassification(), MultiLabel(),
    Regression(), CausalLanguageModel(), MaskedLanguageModel(), Embedding(), Teacher(),
)  # fmt: skip
_NAMED: dict[str, Objective] = {each.name: each for each in BUILT_IN}


def objective_names() -> tuple[str, ...]:
    """Every name that ``objective_named`` knows."""
    return tuple(_NAMED)


def register(objective: Objective) -> Objective:
    """Make an objective known by its name, to ``--objective`` and to files that name it; returns it."""
    _NAMED[objective.name] = objective
    return objective


def objective_named(name: str | Objective) -> Objective:
    """The objective called ``name``; one that is an objective already is returned as it is.

    Raises ``ObjectiveError`` for an unknown name.
    """
    if isinstance(name, Objective):
        return name
    if not isinstance(name, str):
        raise ObjectiveError(
            f"objective= must be an objective or the name of one, got a {type(name).__name__}: "
            "rankfold.objective(name, loss=…) makes one of your own"
        )
    if name in _NAMED:
        return _NAMED[name]
    near = get_close_matches(name, _NAMED, 1)
    raise ObjectiveError(
        f"there is no objective named {name!r}: {f'did you mean {near[0]}? The' if near else 'the'} objectives are "
        f"{', '.join(_NAMED)}"
    )
