"""Table 3: VGG16 on CIFAR-10."""

from __future__ import annotations

from pathlib import Path

from rankfold.papers.lorita import isvt
from rankfold.papers.published import TABLE_3
from rankfold.papers.request import Request
from rankfold.papers.writing import Outcome
from rankfold.pipeline import Tell


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    return isvt.reproduce("lorita-table-3", TABLE_3, request, directory, tell)
