"""Texts with labels: a table of them, for models that give one answer for each text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold.objectives import Classification, MultiLabel, Objective, Regression
from rankfold.zoo.errors import ZooError
from rankfold.zoo.texts.documents import readable
from rankfold.zoo.texts.tables import columns, is_table, records

TEXTS = (("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("text",), ("sentence",))
LABELS = ("label", "labels")


@dataclass(frozen=True)
class Answers:
    """What a model answers for each text: one of its classes, by the names in its configuration, ``several`` of them,
    or, without any, one number."""

    classes: Mapping[str, int]
    several: bool = False

    @property
    def objective(self) -> Objective:
        return MultiLabel() if self.several else Classification() if self.classes else Regression()

    @cached_property
    def known(self) -> Mapping[str, int]:
        """Classes by what may be written for them: their names, and their numbers where no name is the number of
        another class, since a label must not mean another class in another file."""
        numbers = {str(number): number for number in self.classes.values()}
        clash = any(numbers.get(name, number) != number for name, number in self.classes.items())
        return self.classes if clash else {**numbers, **self.classes}

    def of(self, file: Path, values: Sequence[Any]) -> Tensor:
        """Labels (N,) int64 of a column of classes, by name or number; (N, K) float32 of several; (N, 1) float32 of
        numbers. ``ZooError`` for one that the model does not know."""
        if self.several:
            return torch.stack(self._marked(file, values))
        if not self.classes:
            return torch.tensor([[_number(file, row, value)] for row, value in enumerate(values, 1)])
        return torch.tensor([self._class(file, row, value) for row, value in enumerate(values, 1)])

    def _class(self, file: Path, row: int, value: Any) -> int:
        for told in (str(value), _written(value)):
            if told in self.known:
                return self.known[told]
        numbers = f", nor a number from 0 to {len(self.classes) - 1}"
        if self.known is self.classes:
            numbers = ", whose names are numbers, so that they alone count"
        raise ZooError(
            f"{file}, row {row}: the label {str(value)[:40]!r} is none of the model's classes, "
            f"{', '.join(self.classes)}{numbers}: write one of these, or name them otherwise in its config.json "
            "(id2label)"
        )

    def _marked(self, file: Path, values: Sequence[Any]) -> list[Tensor]:
        """For each list a 1 for each class that it names, or has a 1 for."""
        count = len(self.classes)
        for row, value in enumerate(values, 1):
            if not isinstance(value, list):
                raise ZooError(
                    f"{file}, row {row}: the model answers with several classes, and the label is no list of them: "
                    "give JSON lines or Parquet with a list in each row"
                )
        marks = [len(value) == count and all(one in (0, 1) for one in value) for value in values]
        numbered = any(value and not isinstance(value[0], str) for value, one in zip(values, marks) if not one)
        found = []
        for row, (value, one) in enumerate(zip(values, marks, strict=True), 1):
            if one and numbered and len(set(value)) == count:  # of two classes
                raise ZooError(
                    f"{file}, row {row}: the label {value} is both classes by their numbers, or a 1 for one of them: "
                    f"write their names, {', '.join(self.classes)}"
                )
            if one:
                found.append(torch.tensor(value, dtype=torch.float32))
                continue
            classes = [self._class(file, row, each) for each in value]
            if len(set(classes)) < len(classes) and not all(isinstance(each, str) for each in value):
                raise ZooError(
                    f"{file}, row {row}: the label {str(value)[:40]} has a class twice: give each class once, or "
                    f"{count} numbers, 1 for each class that it has and 0 for the others"
                )
            found.append(torch.zeros(count).index_fill(0, torch.tensor(classes, dtype=torch.long), 1))
        return found


def _number(file: Path, row: int, value: Any) -> float:
    try:
        if isfinite(number := float(value)):
            return number
    except (TypeError, ValueError):
        pass
    raise ZooError(f"{file}, row {row}: the model answers with one number, and the label is {str(value)[:40]!r}")


def answers_of(model: Any) -> Answers | None:
    """What a model of transformers answers for a whole text; None where it answers otherwise."""
    config = model.config
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    if config.num_labels == 1:
        return Answers({})
    names = {str(name): int(number) for number, name in config.id2label.items()}  # the other way round may be missing
    return Answers(names, getattr(config, "problem_type", "") == "multi_label_classification")


@dataclass(frozen=True)
class Table:
    """Texts, or pairs of them, and their labels (N, …)."""

    texts: Sequence[tuple[str, ...]]
    labels: Tensor | None = None


def table(file: Path, answers: Answers) -> Table | None:
    """The texts and labels of a file; None where it is no table with both. Raises ``ZooError``, one line."""
    with readable(file):
        if not is_table(file):
            return None
        there = set(columns(file))
        names = next((names for names in TEXTS if there.issuperset(names)), None)
        label = next((name for name in LABELS if name in there), None)
        if names is None or label is None:
            return None
        texts, labels = [], []
        for *text, value in _whole(file, (*names, label)):
            texts.append(tuple(text))
            labels.append(value)
    if not texts:
        raise ZooError(f"{file}: it holds no line of text")
    return Table(texts, answers.of(file, labels))


def _whole(file: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows in which no text is missing."""
    for number, row in enumerate(records(file, names), 1):
        for name, value in zip(names[:-1], row[:-1], strict=True):
            if not isinstance(value, str):
                raise ZooError(f"{file}, row {number}: the column {name} holds {str(value)[:40]!r}, which is no text")
        yield row


def _written(value: Any) -> str:
    """A label as it is written; 1.0 is 1, also in text."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole or isinstance(value, bool) else re.sub(r"(?<=\d)\.0+$", "", str(value))
