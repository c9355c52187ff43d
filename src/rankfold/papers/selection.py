"""Weight decay chosen on validation, then every seed trained with it: the paper's procedure, without its test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rankfold.papers.request import Request
from rankfold.papers.runs import Case, Trained, short, tested, train_all
from rankfold.pipeline import Tell
from rankfold.train import Recipe
from rankfold.zoo import Data


def tuned(
    asked: Request, recipe: Recipe, data: Data, directory: Path, tell: Tell, where: str | None = None
) -> tuple[dict[tuple[str, int], list[Trained]], pd.DataFrame]:
    """For each model and N, the trainings of all seeds at the decay that the first seed chooses; and the whole grid.

    ``recipe`` but for decay and seed; ``where`` narrows what is over-parametrised. Cost: one training for each model, N
    and decay, and one more for each further seed.
    """
    decays, seeds = asked.decays or (), asked.seeds or ()
    keys = [(model, depth) for model in asked.models or () for depth in asked.depths or ()]

    def case(key: tuple[str, int], decay: float, seed: int) -> Case:
        chosen = replace(recipe, weight_decay=decay, seed=seed)
        return Case(*key, chosen, data.name, asked.start, where, asked.train_samples)

    grid = [case(key, decay, seeds[0]) for key in keys for decay in decays]
    trained = dict(zip(grid, train_all(grid, directory, asked.jobs, tell), strict=True))
    chosen = {key: choose([trained[case(key, decay, seeds[0])] for decay in decays], asked.tolerance) for key in keys}
    for (model, depth), decay in chosen.items() if len(decays) > 1 else ():
        tell.say(f"{short(model)}, N={depth}: validation chooses weight decay {decay:g}")
    further = [case(key, chosen[key], seed) for key in keys for seed in seeds[1:]]
    trained |= dict(zip(further, train_all(further, directory, asked.jobs, tell), strict=True))
    reported = {key: [case(key, chosen[key], seed) for seed in seeds] for key in keys}
    trained |= {each: tested(trained[each], data) for group in reported.values() for each in group}
    runs = {key: [trained[each] for each in group] for key, group in reported.items()}
    rows = [
        row(run, run.case.recipe.weight_decay == chosen[run.case.model, run.case.depth]) for run in trained.values()
    ]
    return runs, pd.DataFrame(rows)


def images(runs: Mapping[tuple[str, int], Sequence[Trained]], data: Data) -> int:
    """How many of ``data`` each training saw."""
    return len(next(iter(runs.values()))[0].part(data).train)


def choose(grid: Sequence[Trained], tolerance: float | None = None) -> float:
    """The largest weight decay whose validation accuracy is within ``tolerance`` of the best.

    None is one standard error, the rule of Breiman et al. 1984, section 3.4.3: between networks that validation cannot
    tell apart, the most regularised. Collapsed trainings do not take part, unless all did.
    """
    sound = [run for run in grid if run.collapse is None] or list(grid)
    best = max(run.validation for run in sound)
    if tolerance is None:
        tolerance = math.sqrt(best * (1 - best) / sound[0].validation_count)
    return max(run.case.recipe.weight_decay for run in sound if run.validation >= best - tolerance - 1e-12)


def row(run: Trained, chosen: bool) -> dict[str, object]:
    """A line of the table of all trainings; test accuracy of those alone that are reported."""
    return {
        "model": short(run.case.model),
        "N": run.case.depth,
        "weight_decay": run.case.recipe.weight_decay,
        "seed": run.case.recipe.seed,
        "chosen": chosen,
        "validation_accuracy": run.validation,
        "test_accuracy": run.test if chosen else math.nan,
        "best_epoch": run.best_epoch,
        "epochs": run.epochs,
        "seconds": run.seconds,
        "collapse": run.collapse or run.stopped or "",
    }
