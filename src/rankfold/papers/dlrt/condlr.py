"""What low rank costs in robustness, and what conditioning gives back: CondLR and RobustDLRT on MNIST, by PGD.

Neither paper's networks are trained here; theirs were attacked by single steps (FGSM), which find less.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from rankfold.induce import Condition, Dlrt, Spread, dlrt_, fold_
from rankfold.induce.dynamic.condition import Conditioning
from rankfold.papers import quick
from rankfold.papers.request import FIXED, Request
from rankfold.papers.runs import computed, device, kept, one_thread, restricted, time_remark
from rankfold.papers.writing import Outcome, look, panels
from rankfold.pipeline import Tell
from rankfold.pipeline.robustness.study import Robustness, robustness
from rankfold.run.disk.container import packed
from rankfold.run.disk.files import write_atomically
from rankfold.run.progress import Progress
from rankfold.train import Recipe, fit
from rankfold.zoo import load_data, load_weights

Variant = Literal["dense", "low rank", "condition", "spread"]
STRENGTHS: Mapping[Variant, tuple[float, ...]] = {"condition": (1.5, 2.0, 4.0), "spread": (0.01, 0.03, 0.1)}
LINF, L2, JUDGED, WITHIN = (0.03, 0.06), (0.5, 1.0), 0.06, 0.005
SAMPLES = 1000  # that are attacked
TRAINED, WEIGHTS = "condlr", "weights.safetensors"
ATTACKS = [*(f"linf {r:g}" for r in LINF), *(f"l2 {r:g}" for r in L2)]
FULL = Request(seeds=(0, 1, 2, 3, 4), epochs=6)
QUICK = Request(seeds=(0, 1), epochs=12)


@dataclass(frozen=True)
class Case:
    """A network of two hidden layers; ``strength``: the bound of condition numbers, or the weight of the penalty."""

    variant: Variant
    strength: float
    seed: int
    epochs: int
    data: str = "mnist"
    width: int = 256
    rank: int = 20
    train_samples: int | None = None

    @property
    def title(self) -> str:
        return f"condlr-{self.variant.replace(' ', '-')}-{self.strength:g}-seed{self.seed}"


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Strengths are chosen on validation with the first seed; test images are attacked once, of the chosen networks."""
    request.only("condlr-mnist", FIXED | {"seeds", "epochs", "train_samples"})
    asked = request.filled(QUICK if request.quick else FULL)
    small = {"data": quick.DATA, "width": 32, "rank": 5} if request.quick else {}
    seeds, epochs = asked.seeds or (), asked.epochs or 1

    def case(variant: Variant, strength: float, seed: int) -> Case:
        return Case(variant, strength, seed, epochs, train_samples=asked.train_samples, **small)  # type: ignore[arg-type]

    def measured(cases: Sequence[Case]) -> list[dict[str, Any]]:
        return computed(cases, _measure, TRAINED, directory, asked.jobs, tell, _said)

    def attacked(cases: Sequence[Case]) -> list[dict[str, Any]]:
        return computed(cases, _attack, "condlr-test", directory, asked.jobs, tell)

    grid: list[Case] = [case("dense", 0.0, seeds[0]), case("low rank", 0.0, seeds[0])]
    grid += [case(variant, strength, seeds[0]) for variant, values in STRENGTHS.items() for strength in values]
    first = measured(grid)
    chosen = {variant: _chosen(variant, first) for variant in ("dense", "low rank", *STRENGTHS)}
    rest = [case(variant, chosen[variant], seed) for variant in chosen for seed in seeds[1:]]
    found = dict(zip([*grid, *rest], [*first, *measured(rest)], strict=True))
    reported = [each for each in found if each.strength == chosen[each.variant]]
    unseen = [each for each in reported if "test" not in found[each]]  # cells of before have attacked test images
    tests = dict(zip(unseen, attacked(unseen), strict=True))
    known = {each: tests.get(each, found[each])["test"] for each in reported}
    runs = pd.DataFrame([_row(values, known.get(each)) for each, values in found.items()])
    table, images = summary(runs[runs.chosen]), min(SAMPLES, len(load_data(grid[0].data).test))
    return Outcome(
        f"Robustness at low rank on {grid[0].data}: two hidden layers of {grid[0].width}, rank {grid[0].rank}, "
        f"{epochs} epochs, {len(seeds)} seeds",
        {"robustness": table, "runs": runs},
        {"robustness": _figure(table)},
        [*remarks(table, images), time_remark([*found.values(), *tests.values()])],
        {"asked": asked.to_dict(), "linf": LINF, "l2": L2},
    )


def network(case: Case) -> nn.Module:
    """Flattened pixels, two hidden layers, ten classes."""
    pixels = 64 if case.data == "digits" else 784
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, case.width), nn.ReLU(), nn.Linear(case.width, case.width), nn.ReLU(),
            nn.Linear(case.width, 10),
        )  # fmt: skip


@one_thread()
def _measure(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    data = restricted(load_data(case.data), case.train_samples, case.seed)
    model = network(case).to(device())
    recipe = Recipe(
        epochs=case.epochs,
        batch_size=128 if len(data.train) > 4096 else 16,
        learning_rate=0.05,
        nesterov=False,
        weight_decay=0.0,
        seed=case.seed,
    )
    make = None
    if case.variant != "dense":
        dlrt_(model, case.rank)
        condition: Conditioning | None = None
        if case.variant in STRENGTHS:
            condition = Condition(case.strength) if case.variant == "condition" else Spread(case.strength)
        make = functools.partial(Dlrt, tolerance=0.0, most=case.rank, condition=condition)
    fit(model, data.train, data.validation, recipe, progress=Tell(progress).training(case.title), optimizer=make)
    write_atomically(place / WEIGHTS, packed(fold_(copy.deepcopy(model)).state_dict()))
    small = fold_(model, keep=make is not None).eval()
    found = robustness(small, data.validation, linf=LINF, l2=L2, samples=SAMPLES)
    return {
        "validation": _accuracies(found),
        "params": found.params,
        "gain": found.gain,
        "condition": found.condition,
        "blind": found.blind,
        "largest conditions": [layer.condition for layer in found.layers],
    }


@one_thread()
def _attack(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """Of the network that ``_measure`` trained, its factors multiplied out, on test images."""
    model, trained = network(case), kept(_measure, TRAINED, place.parent.parent).file(case)
    load_weights(model, trained.with_name(WEIGHTS))
    test = load_data(case.data).test
    return {"test": _accuracies(robustness(model.to(device()).eval(), test, linf=LINF, l2=L2, samples=SAMPLES))}


def _accuracies(found: Robustness) -> dict[str, float]:
    """Without attack and under each, of the same images."""
    return {"clean": found.clean} | {f"{a.norm} {a.radius:g}": a.accuracy for a in found.attacks}


def _said(values: dict[str, Any]) -> str:
    known = values["validation"]
    return f"validation {100 * known['clean']:.2f} %, l∞ {JUDGED:g} {100 * known[f'linf {JUDGED:g}']:.1f} %"


def _chosen(variant: Variant, first: Sequence[dict[str, Any]]) -> float:
    """The strength that stands most at the judged radius on validation, among those whose accuracy without attack is
    within half a point of plain low rank, or else the one nearest to it."""
    plain = next(values for values in first if values["case"]["variant"] == "low rank")
    own = [values for values in first if values["case"]["variant"] == variant]
    lost = {id(values): plain["validation"]["clean"] - values["validation"]["clean"] for values in own}
    fair = [values for values in own if lost[id(values)] <= WITHIN] or [min(own, key=lambda v: lost[id(v)])]
    best = max(fair, key=lambda values: values["validation"][f"linf {JUDGED:g}"])
    return best["case"]["strength"]


def _row(values: dict[str, Any], test: Mapping[str, float] | None) -> dict[str, Any]:
    """A line of the table of all trainings; ``test``: accuracies of a network that was chosen."""
    case, known = values["case"], test or {}
    return {
        "network": case["variant"], "strength": case["strength"], "seed": case["seed"],
        "chosen": test is not None, "params": values["params"],
        **{f"{key} %": 100 * known.get(key, math.nan) for key in ("clean", *ATTACKS)},
        **{f"validation {key} %": 100 * values["validation"][key] for key in ("clean", *ATTACKS)},
        "∏σ₁": values["gain"], "∏κ": values["condition"],
    }  # fmt: skip


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds, with deviations of what is judged, and the share of the lost accuracy that came back."""
    judged = f"linf {JUDGED:g} %"
    rows = []
    for name in dict.fromkeys(runs.network):
        part = runs[runs.network == name]
        row = {"network": name, "strength": part.strength.iloc[0], "seeds": len(part), "params": part.params.iloc[0]}
        row |= {"clean %": part["clean %"].mean(), "± clean": part["clean %"].std()}
        row |= {f"{key} %": part[f"{key} %"].mean() for key in ATTACKS}
        row |= {"± " + judged[:-2]: part[judged].std(), "∏σ₁": part["∏σ₁"].mean(), "∏κ": part["∏κ"].mean()}
        rows.append(row)
    table = pd.DataFrame(rows)
    dense, low = (table[table.network == name][judged].iloc[0] for name in ("dense", "low rank"))
    table["came back %"] = [
        100 * (value - low) / (dense - low) if dense != low else float("nan") for value in table[judged]
    ]
    return table


def remarks(table: pd.DataFrame, images: int) -> list[str]:
    """What was found, in sentences, whichever way it went."""
    judged = f"linf {JUDGED:g} %"
    rows = {row["network"]: row for row in table.to_dict("records")}
    dense, low = rows["dense"], rows["low rank"]
    said = [
        f"Low rank costs {dense[judged] - low[judged]:.1f} points of accuracy under PGD at l∞ {JUDGED:g}, and "
        f"{dense['clean %'] - low['clean %']:.2f} without attack.",
    ]
    for name in ("condition", "spread"):
        row = rows[name]
        reached = "reaches" if row[judged] >= dense[judged] else "does not reach"
        said.append(
            f"{name.capitalize()} ({row['strength']:g}) gives back {row['came back %']:.0f} % of it at the same "
            f"parameters, {row['clean %'] - low['clean %']:+.2f} points without attack beside plain low rank; it "
            f"{reached} the dense network's {dense[judged]:.1f} %."
        )
    said.append(
        f"PGD, 20 steps from the sample and from one random point, every iterate counts, {images:,} test images; no "
        "adversarial training. The strength is the one that stands most on validation with the first seed."
    )
    return said


def _figure(table: pd.DataFrame) -> Figure:
    with panels(1, 2) as (figure, axes):
        for place, (norm, radii) in enumerate((("linf", LINF), ("l2", L2))):
            for number, row in enumerate(table.to_dict("records")):
                ys = [row["clean %"], *(row[f"{norm} {radius:g} %"] for radius in radii)]
                axes[0][place].plot([0, *radii], ys, label=row["network"], **look(number))
            axes[0][place].set_xlabel(f"radius, {norm}")
        axes[0][0].set_ylabel("right answers on test, %")
        axes[0][0].legend()
        return figure
