"""Tables 4 and 5: ResNet18 and ResNet34 on ImageNet, or on whatever classification set is given in its place."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rankfold.papers.lorita import isvt
from rankfold.papers.published import TABLE_4, TABLE_5
from rankfold.papers.request import Request

# 90 epochs, decay 1e-4: the usual training of these networks; the paper tells the optimizer and its rate alone
FULL = Request(depths=(1, 2), decays=(1e-4,), seeds=(0,), epochs=90, finetune_epochs=10)

table_4 = partial(isvt.reproduce, "lorita-table-4", TABLE_4, full=replace(FULL, depths=(1, 2, 3)))
table_5 = partial(isvt.reproduce, "lorita-table-5", TABLE_5, full=FULL)
