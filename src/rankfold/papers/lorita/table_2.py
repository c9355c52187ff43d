"""Table 2: ResNet20 on CIFAR-10."""

from __future__ import annotations

from functools import partial

from rankfold.papers.lorita import isvt
from rankfold.papers.published import TABLE_2

reproduce = partial(isvt.reproduce, "lorita-table-2", TABLE_2)
