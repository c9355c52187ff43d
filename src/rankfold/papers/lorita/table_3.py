"""Table 3: VGG16 on CIFAR-10."""

from __future__ import annotations

from functools import partial

from rankfold.papers.lorita import isvt
from rankfold.papers.published import TABLE_3

reproduce = partial(isvt.reproduce, "lorita-table-3", TABLE_3)
