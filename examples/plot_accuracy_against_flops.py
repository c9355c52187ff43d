"""Draw docs/img/accuracy-against-flops.svg: accuracy against kept FLOPs of the digits network, for three ways.

    python examples/plot_accuracy_against_flops.py [--out FILE.svg] [--points FILE.json]

Trains digits-cnn from nothing on scikit-learn's digits (no download), compresses it without fine-tuning at a row of
budgets, and evaluates every network on the test split, on which nothing is chosen. With POINTS that exists already,
nothing is trained: the picture alone is drawn again.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

import rankfold as rf
from rankfold import zoo
from rankfold.train import fit

KEPT = (0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
WAYS = (  # name in the legend, method, rank rule, whether it sees data, colour
    ("project, optimal ranks", "project", "optimal", True, "#1b6ca8"),
    ("truncate, optimal ranks", "truncate", "optimal", True, "#c2571a"),
    ("truncate, global ranks (GSVT)", "truncate", "global", False, "#6b6b6b"),
)
STYLE: Any = {"svg.hashsalt": "rankfold", "svg.fonttype": "path", "font.size": 10, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "axes.edgecolor": "#888888", "text.parse_math": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/img/accuracy-against-flops.svg"))
    parser.add_argument("--points", type=Path, default=Path("accuracy-against-flops.json"))
    given = parser.parse_args()
    if not given.points.exists():
        given.points.write_text(json.dumps(measured(), indent=1) + "\n")
    draw(json.loads(given.points.read_text()), given.out)
    print(f"wrote {given.out}")


def measured() -> dict[str, Any]:
    """Accuracy of the trained network, and (kept FLOPs, accuracy) of each way at each budget that it reaches."""
    data = zoo.load_data("digits")
    network = zoo.model("digits-cnn")
    fit(network, data.train, data.validation, rf.Recipe(epochs=8, batch_size=64, learning_rate=0.05))
    points: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in WAYS}
    statistics = None
    for name, method, rule, sees_data, _ in WAYS:
        for kept in KEPT:
            given: dict[str, Any] = {"data": data.train} if sees_data else {"example": data.train[0][0].unsqueeze(0)}
            calibration = rf.Calibration(statistics=statistics)
            try:
                plan = rf.plan(network, rf.Flops(kept), method, rule=rule, calibration=calibration, **given)
            except rf.BudgetError:
                continue
            statistics = plan.statistics or statistics
            small = rf.apply_(copy.deepcopy(network), plan)
            rf.reestimate_(small, network, data.train)
            accuracy = rf.evaluate(small, data.test).accuracy
            points[name].append((plan.after.flops / plan.before.flops, accuracy))
            print(f"{name}: {points[name][-1][0]:.3f} of the FLOPs kept, accuracy {accuracy:.4f}", flush=True)
    return {"dense": rf.evaluate(network, data.test).accuracy, "points": points}


def draw(results: dict[str, Any], file: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.axhline(100 * results["dense"], color="#888888", ls=":", lw=1.2)
        axes.annotate(
            f"trained network, {100 * results['dense']:.1f} %", (100, 100 * results["dense"]), xytext=(0, 5),
            textcoords="offset points", color="#555555", fontsize=9,
        )  # fmt: skip
        for (name, *_, colour), mark in zip(WAYS, "os^"):
            kept, accuracy = zip((1.0, results["dense"]), *results["points"][name])
            axes.plot([100 * k for k in kept], [100 * a for a in accuracy], color=colour, marker=mark, ms=5, label=name)
        axes.set_xlim(101, 7)  # smaller networks to the right
        axes.set_ylim(0, 109)
        axes.set_xlabel("FLOPs kept, % of the trained network")
        axes.set_ylabel("test accuracy, %")
        axes.grid(color="#dddddd", lw=0.6)
        axes.legend(loc="lower left", frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
