"""Adaptations by low rank within the same number of parameters: each method's own ranks, paired over seeds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from rankfold.adapt.deep_lora import chosen_layers
from rankfold.adapt.ways import METHODS
from rankfold.papers.dlrt.tasks import TASKS, adapted_to, base, train_base
from rankfold.papers.request import FIXED, Request
from rankfold.papers.runs import computed, one_thread, restricted, time_remark
from rankfold.papers.writing import Outcome, colour, panels
from rankfold.pipeline import Tell
from rankfold.pipeline.adaptation import AdaptSettings, NothingLearntError, adapt
from rankfold.run.errors import UsageError
from rankfold.run.progress import Progress
from rankfold.train import evaluate

FULL = Request(models=("fashion", "turned", "halves", "shakespeare"), seeds=(0, 1, 2, 3, 4), trials=3)
QUICK = Request(models=("quick",), seeds=(0, 1), trials=1)
RATES = (3e-3, 1e-2, 3e-2, 1e-3)
# the settings of each trial, as many for every method
CHOICES: Mapping[str, Sequence[Mapping[str, float]]] = {
    name: [{"learning_rate": rate} for rate in RATES] for name in METHODS if name != "debora"
} | {
    "debora": [
        {"learning_rate": rate, "radius": radius}
        for rate, radius in ((3e-3, 8.0), (1e-2, 8.0), (1e-2, 30.0), (3e-3, 30.0))
    ],
}
OURS, RIVAL = ("geolora", "debora"), "adalora"
BASES = "bases"  # beside the runs


@dataclass(frozen=True)
class Case:
    """Trial ``number`` of ``method`` on ``task``."""

    task: str
    method: str
    number: int
    seed: int
    samples: int | None = None

    @property
    def title(self) -> str:
        return f"adaptation-{self.task}-{self.method}-{self.number}-seed{self.seed}"


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Each method has the same number of trials, judged on validation with the first seed; the best is run with all
    seeds, and differences are of the same seed: the same samples, the same base."""
    request.only("adaptation-table", FIXED | {"models", "seeds", "train_samples", "trials"})
    asked = request.filled(QUICK if request.quick else FULL)
    tasks, seeds, count = asked.models or (), asked.seeds or (), asked.trials or 1
    if unknown := [name for name in tasks if name not in TASKS]:
        raise UsageError(f"adaptation-table has no task {unknown[0]!r}: there are {', '.join(TASKS)}")
    if count > len(RATES):
        raise UsageError(f"adaptation-table has {len(RATES)} settings of each method: trials are at most so many")
    for name in tasks:
        tell.say(f"{name}: {TASKS[name].words}")
        train_base(name, directory / BASES)
    keys = [(task, method) for task in tasks for method in METHODS]

    def run(cases: Sequence[Case]) -> dict[Case, dict[str, Any]]:
        found = computed(cases, measure, "adaptation", directory, asked.jobs, tell, _said)
        return dict(zip(cases, found, strict=True))

    def case(key: tuple[str, str], number: int, seed: int) -> Case:
        return Case(*key, number, seed, asked.train_samples)

    found = run([case(key, number, seeds[0]) for number in range(count) for key in keys])
    best = {}
    for key in keys:
        scores = [found[case(key, number, seeds[0])]["validation"] for number in range(count)]
        best[key] = scores.index(max(scores))
    found |= run([case(key, best[key], seed) for seed in seeds[1:] for key in keys])
    trials = pd.DataFrame([row(values, best) for values in found.values()])
    chosen = trials[trials.chosen]
    ours = named_before_test(chosen)
    table = summary(chosen)
    return Outcome(
        f"Adaptation by low rank: {len(tasks)} tasks, {len(METHODS)} methods of equal size, {len(seeds)} seeds",
        {"adaptation": table, "trials": trials},
        {"adaptation": _figure(table)},
        [*remarks(table, chosen, ours), time_remark(list(found.values()))],
        {"asked": asked.to_dict(), "choices": {name: [dict(x) for x in known] for name, known in CHOICES.items()}},
    )


def _said(values: dict[str, Any]) -> str:
    return f"validation {values['validation']:.3f}, {values['params']:,} numbers"


@one_thread()
def measure(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """One adaptation. Scores grow with quality: right answers in points, or of a language model minus nats a token in
    hundredths. The test score is looked at by whoever chose this trial."""
    task, model = TASKS[case.task], base(case.task, place.parent.parent / BASES)
    data = restricted(adapted_to(case.task), case.samples or task.samples, case.seed)
    sites = chosen_layers(model, 1, None, convolutions=False)
    chosen: Mapping[str, Any] = CHOICES[case.method][case.number]
    settings = AdaptSettings(
        case.method, params=float(task.rank * sum(sum(site.shape) for site, _ in sites)), epochs=task.epochs,
        batch_size=task.batch, seed=case.seed, where=_linear, **chosen,
    )  # fmt: skip
    before = evaluate(model, data.test, role="test", objective=data.objective)
    try:
        found = adapt(model, data, settings, place / "adapter", objective=data.objective, restart=True)
        after, params, ranks = found.after, found.extraction.params, dict(found.extraction.adapter.ranks)
    except NothingLearntError:  # a result as well
        model = base(case.task, place.parent.parent / BASES)
        after, params, ranks = before, 0, {}
    judged = evaluate(model, data.validation, role="validation", objective=data.objective)
    shutil.rmtree(place / "adapter")
    return {
        "settings": dict(chosen), "before": _score(before), "validation": _score(judged),
        "test": _score(after), "params": params, "budget": int(settings.params), "ranks": ranks,
    }  # fmt: skip


def _linear(name: str, module: torch.nn.Module) -> bool:
    """What every method can adapt."""
    return isinstance(module, torch.nn.Linear)


def _score(figures: Any) -> float:
    accuracy = figures.values.get("accuracy")
    return -100 * figures.loss if "perplexity" in figures.values or accuracy is None else 100 * accuracy


def row(values: dict[str, Any], best: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """A line of the table of all trials."""
    case, ranks = values["case"], values["ranks"]
    return {
        "task": case["task"], "method": case["method"], "trial": case["number"], "seed": case["seed"],
        "chosen": best[case["task"], case["method"]] == case["number"], "before": values["before"],
        "validation": values["validation"], "test": values["test"], "params": values["params"],
        "ranks": " ".join(str(rank) for rank in ranks.values()), "cpu s": values["cpu_seconds"],
        "settings": ", ".join(f"{key} {value:g}" for key, value in values["settings"].items()),
    }  # fmt: skip


def named_before_test(chosen: pd.DataFrame) -> str:
    """Which of our two stands for both: the better one in the mean over tasks on validation."""
    scores = chosen[chosen.method.isin(OURS)].groupby(["task", "method"]).validation.mean().unstack()
    return str(scores.mean().idxmax())


def summary(chosen: pd.DataFrame) -> pd.DataFrame:
    """Of each method its chosen trial over the seeds, and the difference to AdaLoRA of the same seed."""
    lines = []
    for task, of_task in chosen.groupby("task", sort=False):
        by_seed = of_task.pivot(index="seed", columns="method", values="test")
        for method, part in of_task.groupby("method", sort=False):
            apart = by_seed[method] - by_seed[RIVAL]
            certain = len(apart) > 1 and method != RIVAL and bool(apart.std() > 0)
            lines.append(
                {
                    "task": task, "method": method, "seeds": len(part), "test": part.test.mean(),
                    "± test": part.test.std(), f"to {RIVAL}": apart.mean(), f"± to {RIVAL}": apart.std(),
                    "p": float(ttest_rel(by_seed[method], by_seed[RIVAL]).pvalue) if certain else float("nan"),
                    "before": part.before.mean(), "params": part.params.mean(), "cpu s": part["cpu s"].mean(),
                    "settings": part.settings.iloc[0],
                }
            )  # fmt: skip
    table = pd.DataFrame(lines)
    return table.sort_values(["task", "test"], ascending=[True, False], ignore_index=True)


def remarks(table: pd.DataFrame, chosen: pd.DataFrame, ours: str) -> list[str]:
    """Whether ours is ahead of AdaLoRA, how far behind the best of fixed rank, and whether AdaLoRA moved its ranks."""
    ahead = table[(table.method == ours) & (table[f"to {RIVAL}"] > 0)]
    fixed = table[table.method.isin(("lora", "rslora"))].groupby("task").test.max()
    behind = (fixed - table[table.method == ours].set_index("task").test).mean()
    moved = chosen[chosen.method == RIVAL].ranks.map(lambda text: len(set(text.split())) > 1)
    return [
        f"{ours}, named by validation before the test split was opened, is better than AdaLoRA in {len(ahead)} of "
        f"{table.task.nunique()} tasks in the paired mean; in the mean over tasks {abs(behind):.2f} "
        f"{'behind' if behind > 0 else 'ahead of'} the best LoRA of one rank.",
        f"AdaLoRA ended with ranks that differ between layers in {int(moved.sum())} of {len(moved)} runs.",
        "Scores are right answers in points; of the language model minus its loss in hundredths of a nat. All "
        "trials are in trials.csv; all are cut to the same number of parameters at the end.",
    ]


def _figure(table: pd.DataFrame) -> Figure:
    tasks = list(dict.fromkeys(table.task))
    with panels(1, len(tasks), (3.2, 3.2)) as (figure, axes):
        for place, task in enumerate(tasks):
            part = table[table.task == task].set_index("method").reindex(METHODS)
            deviation = part[f"± to {RIVAL}"].fillna(0)  # of what the bars show: differences of one seed
            axes[0][place].barh(range(len(METHODS)), part[f"to {RIVAL}"], xerr=deviation, color=colour(0), height=0.6)
            axes[0][place].set_yticks(range(len(METHODS)), METHODS if place == 0 else [""] * len(METHODS))
            axes[0][place].axvline(0, color="0.5", linewidth=0.8)
            axes[0][place].set_xlabel(f"{task}: points above AdaLoRA")
        return figure
