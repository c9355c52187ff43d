"""Networks trained with different numbers N of composed matrices: how much of each can be removed at the same drop?

    python benchmarks/lorita_depth.py N=1:weights1.safetensors N=3:weights3.safetensors --model resnet20 --out FILE

No fine-tuning, and BatchNorm corrected. Ranks within each budget of parameters are chosen from data on a part of the
training split (method project), or from the weights alone (truncate). Printed for each network: validation accuracy at
each size, the parameters removed at drops of 0.5, 1 and 2 points and test accuracy there, both between neighbouring
sizes by a straight line; null where it never fell so far.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import rankfold as rf
from rankfold import zoo
from rankfold.compress.planning.profile import Calibration
from rankfold.pipeline import calibration_part, compressed_copy

KEPT = (0.8, 0.65, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12)
DROPS = (0.5, 1.0, 2.0)
Point = tuple[float, float, float]  # per cent: parameters removed, validation accuracy, test accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME:WEIGHTS")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--methods", default="project,truncate")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = zoo.load_data(given.data)
    calibration = calibration_part(data.train, given.samples, 0)
    results = []
    for text in given.networks:
        name, _, weights = text.partition(":")
        network = zoo.model(given.model)
        zoo.load_weights(network, weights)
        network.eval()
        before = 100 * rf.evaluate(network, data.validation, role="validation").accuracy
        test = 100 * rf.evaluate(network, data.test).accuracy
        for method in given.methods.split(","):
            points: list[Point] = [(0.0, before, test)]
            statistics = None
            for keep in KEPT:
                how = Calibration(given.samples, statistics=statistics)
                try:
                    plan = rf.plan(network, f"params={keep}", method, calibration, calibration=how)
                except rf.BudgetError:
                    break
                statistics = plan.statistics
                small, score = compressed_copy(network, plan, calibration, data.validation)
                removed = 100 * (1 - plan.after.params / plan.before.params)
                points.append((removed, 100 * score.accuracy, 100 * rf.evaluate(small, data.test).accuracy))
            row = {
                "network": name, "method": method, "validation": before, "test": test,
                "points": points[1:], "at_drop": {drop: at_drop(points, drop) for drop in DROPS},
            }  # fmt: skip
            results.append(row)
            print(json.dumps(row), flush=True)
            given.out.write_text(json.dumps(results, indent=1) + "\n")


def at_drop(points: list[Point], drop: float) -> dict[str, float] | None:
    """Where validation accuracy has first fallen by ``drop`` points from the first of ``points``, which is the network
    as it was trained; None where it never has."""
    lost = [points[0][1] - validation for _, validation, _ in points]
    reached = next((at for at, fallen in enumerate(lost) if fallen >= drop), None)
    if reached is None:
        return None
    beside = slice(reached - 1, reached + 1)
    removed, _, test = (np.interp(drop, lost[beside], values[beside]) for values in zip(*points, strict=True))
    return {"removed": float(removed), "test": float(test)}


if __name__ == "__main__":
    main()
