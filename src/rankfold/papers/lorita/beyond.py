"""What the paper leaves to the future: LoRITa with better compression, against LoRITa with ISVT at the same sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rankfold.papers import quick
from rankfold.papers.lorita import isvt
from rankfold.papers.lorita.squeezing import ISVT, OURS, Budget, budgets_of, squeeze
from rankfold.papers.published import TABLE_2
from rankfold.papers.request import GIVEN, TRAINING, Request
from rankfold.papers.runs import device, given, short
from rankfold.papers.writing import Outcome
from rankfold.pipeline import Tell
from rankfold.run.errors import UsageError
from rankfold.zoo import load_data

NAME = "lorita-beyond"
DEPTH = 3
# (FLOPs, parameters) kept: the sizes published for N = 3, and a larger and two smaller ones for the curve
BUDGETS = (Budget(0.6, 0.55), *budgets_of(TABLE_2.own(DEPTH)), Budget(0.3, 0.22), Budget(0.2, 0.15))


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """One network trained with N = 3, or the one of ``weights``, compressed in both ways to every size."""
    request.only(NAME, (GIVEN if request.weights else TRAINING | GIVEN) | {"finetune_rate", "depths"})
    if request.depths not in (None, (DEPTH,)):
        raise UsageError(f"{NAME} trains with N = {DEPTH}: leave depths out")
    asked = replace(isvt.defaults(request, TABLE_2), depths=(DEPTH,))
    data = load_data(quick.DATA if asked.quick else "cifar10")
    epochs, grid = asked.finetune_epochs or 0, pd.DataFrame()
    model = asked.one_model(NAME)
    if asked.weights is None:
        runs, grid = isvt.trained(asked, data, directory, tell)
        networks = [(run.network(), run.part(data)) for run in runs[model, DEPTH]]
    else:
        networks = [(given(model, asked.weights), data)]
    rows, budgets = [], (isvt.QUICK_BUDGET,) if asked.quick else BUDGETS
    for way in (OURS.at(asked.finetune_rate), ISVT.at(asked.finetune_rate)):
        for budget in budgets:
            points = [
                squeeze(network.to(device()), part, way, budget, epochs, directory / "points", tell)
                for network, part in networks
            ]
            row = isvt.row_at(TABLE_2, model, DEPTH, budget)
            rows.append(isvt.line(f"{short(model)}: {way.name}", points, row))
    table = pd.DataFrame(rows)
    return Outcome(
        f"Beyond LoRITa on {data.name}: {short(model)} trained with N = {DEPTH}, two ways of compression, "
        f"{epochs} {'epoch' if epochs == 1 else 'epochs'} of fine-tuning",
        {"table": table, "published": isvt.rows_of(TABLE_2)} | ({} if grid.empty else {"trainings": grid}),
        {"accuracy-against-size": isvt.figure(table, isvt.published_rows(TABLE_2, model, (DEPTH,)))},
        [*_gains(table, budgets), *isvt.sentences(table)],
        {"asked": asked.to_dict(), "budgets": [vars(budget) for budget in budgets]},
    )


def _gains(table: pd.DataFrame, budgets: Sequence[Budget]) -> list[str]:
    """What our way gains at each size."""
    ways = [group for _, group in table.groupby("network", sort=False)]
    said = []
    for budget, ours, theirs in zip(budgets, *(way.to_dict("records") for way in ways), strict=True):
        size = f"−{100 * (1 - budget.flops):.1f} % FLOPs and −{100 * (1 - budget.params):.1f} % parameters or beyond"
        stages = [
            f"{ours[stage]:.2f} % against {theirs[stage]:.2f} % {words}"
            for stage, words in (("compressed", "as compressed"), ("fine-tuned", "fine-tuned"))
            if not math.isnan(ours[stage])
        ]
        said.append(f"At {size}: {', '.join(stages)}.")
    return said
