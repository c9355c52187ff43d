"""All ways to low rank in one table: accuracy against true parameters, training cost and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers.dlrt.grounds import GROUNDS
from rankfold.papers.dlrt.trial import CHOICES, Case, measure
from rankfold.papers.request import FIXED, Request
from rankfold.papers.runs import computed, time_remark
from rankfold.papers.writing import Outcome, look, panels
from rankfold.pipeline import Tell
from rankfold.run.errors import UsageError

FULL = Request(models=("fcn", "lenet5", "transformer"), seeds=(0, 1, 2), epochs=6, trials=20)
QUICK = Request(models=("quick",), seeds=(0, 1), epochs=8, trials=2)


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Each way has the same number of trials over its own settings, judged on validation with the first seed; the best
    is trained with the other seeds, and its test figures are shown. Every trial is in ``trials.csv``."""
    request.only("ways-to-low-rank", FIXED | {"models", "seeds", "epochs", "train_samples", "trials"})
    asked = request.filled(QUICK if request.quick else FULL)
    unknown = sorted(set(asked.models or ()) - set(GROUNDS))
    if unknown:
        known = ", ".join(name for name in GROUNDS if name != "quick")
        raise UsageError(f"ways-to-low-rank has no network {unknown[0]!r}: there are {known}")
    seeds = asked.seeds or ()

    def case(network: str, share: float, way: str, number: int, seed: int) -> Case:
        return Case(way, number, network, share, seed, asked.epochs or 1, GROUNDS[network].data, asked.train_samples)

    keys = [
        (network, share, way)
        for network in asked.models or ()
        for way in CHOICES
        if way not in GROUNDS[network].without
        for share in ((1.0,) if way == "dense" else GROUNDS[network].shares)
    ]
    grid = [case(*key, number, seeds[0]) for number in range(asked.trials or 1) for key in keys]
    found = dict(zip(grid, _computed(grid, directory, asked, tell), strict=True))
    best = {key: _best([found[case(*key, n, seeds[0])] for n in range(asked.trials or 1)]) for key in keys}
    rest = [case(*key, best[key], seed) for seed in seeds[1:] for key in keys]
    found |= dict(zip(rest, _computed(rest, directory, asked, tell), strict=True))
    rows = [row(values, best) for values in found.values()]
    table, trials = summary([r for r in rows if r["chosen"]]), pd.DataFrame(rows)
    return Outcome(
        f"Ways to low rank: {asked.epochs} epochs, {asked.trials} trials a way, {len(seeds)} seeds",
        {"ways": table, "trials": trials},
        {"ways": _figure(table)},
        [*remarks(table), *_missing(asked.models or ()), time_remark(list(found.values()))],
        {"asked": asked.to_dict(), "choices": {way: dict(known) for way, known in CHOICES.items()}},
    )


def _computed(cases: Sequence[Case], directory: Path, asked: Request, tell: Tell) -> list[dict[str, Any]]:
    return computed(cases, measure, "ways", directory, asked.jobs, tell, _said)


def _said(values: dict[str, Any]) -> str:
    return f"validation {100 * values['validation']:.2f} %, {values['params']:,} parameters"


def _best(trials: Sequence[dict[str, Any]]) -> int:
    """The number of the trial with the best validation accuracy, of equal ones the first. One that has not come within
    its share, since it diverged before, is taken only where none has."""
    within = [values for values in trials if values["share"] <= values["case"]["share"]]
    return max(within or trials, key=lambda values: (values["validation"], -values["case"]["number"]))["case"]["number"]


def row(values: dict[str, Any], best: dict[tuple[str, float, str], int]) -> dict[str, Any]:
    """A line of the table of all trials."""
    case = values["case"]
    return {
        "network": case["network"], "share": case["share"], "way": case["way"], "trial": case["number"],
        "seed": case["seed"], "chosen": best[case["network"], case["share"], case["way"]] == case["number"],
        "validation %": 100 * values["validation"], "test %": 100 * values["test"], "params": values["params"],
        "kept": values["share"], "cpu s": values["cpu_seconds"], "KiB": values["bytes"] / 1024,
        "settings": ", ".join(f"{key} {value}" for key, value in values["settings"].items()),
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Of each way its chosen trial over the seeds, the best first within a network and share; of seeds that have come
    within the share, where any has."""
    runs, lines = pd.DataFrame(rows), []
    for (network, share, way), part in runs.groupby(["network", "share", "way"], sort=False):
        within = part[part.kept <= share]
        beyond, part = len(part) - len(within), within if len(within) else part
        lines.append(
            {
                "network": network, "share": share, "way": way, "seeds": len(part), "beyond": beyond,
                "test %": part["test %"].mean(), "± test": part["test %"].std(),
                "validation %": part["validation %"].mean(),
                "params": part.params.mean(), "cpu s": part["cpu s"].mean(), "KiB": part["KiB"].mean(),
                "settings": part.settings.iloc[0],
            }
        )  # fmt: skip
    table = pd.DataFrame(lines)
    return table.sort_values(["network", "share", "test %"], ascending=[True, False, False], ignore_index=True)


def remarks(table: pd.DataFrame) -> list[str]:
    """Who is ahead, by how much of the spread, and what is not a fair difference."""
    said = []
    for (network, _), part in table[table.way != "dense"].groupby(["network", "share"], sort=False):
        first, second = part.iloc[0], part.iloc[1]
        said.append(
            f"{network}, {100 * part.share.iloc[0]:g} % of the parameters: {first['way']} {first['test %']:.2f} %, "
            f"then {second['way']} {second['test %']:.2f} %."
        )
    for _, line in table[table.beyond > 0].iterrows():
        said.append(
            f"{line.network}, {100 * line.share:g} %: {line.way} diverged with {line.beyond} of the seeds before it "
            "had come within the share: those are in no mean."
        )
    said.append(
        "Trial 0 has each way's defaults, others are drawn from the way's own choices (result.json); all are in "
        "trials.csv. Training time is processor time of the whole trial, data and judging included; memory counts "
        "parameters, buffers, gradients and the optimizer's state at their largest."
    )
    return said


def _missing(networks: Sequence[str]) -> list[str]:
    """Which ways are not among those of a network, and why."""
    return [f"{name}: {way} is left out: {why}." for name in networks for way, why in GROUNDS[name].without.items()]


def _figure(table: pd.DataFrame) -> Figure:
    names = list(dict.fromkeys(table.network))
    ways = [way for way in CHOICES if way in set(table.way)]
    with panels(1, len(names), (4.2, 3.4)) as (figure, axes):
        for place, name in enumerate(names):
            for number, way in enumerate(ways):
                part = table[(table.network == name) & (table.way == way)].sort_values("params")
                axes[0][place].errorbar(
                    part.params, part["test %"], yerr=part["± test"].fillna(0), label=way, capsize=2,
                    **look(number),
                )  # fmt: skip
            axes[0][place].set_xscale("log")
            axes[0][place].set_xlabel(f"parameters, {name}")
        axes[0][0].set_ylabel("right answers on test, %")
        axes[0][-1].legend(fontsize=7)
        return figure
