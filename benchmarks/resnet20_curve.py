"""ResNet20 on CIFAR-10 without fine-tuning: accuracy against FLOPs for every method and every rank rule.

    python benchmarks/resnet20_curve.py WEIGHTS --out curve.json [--kept 0.3 0.5] [--methods project] [--rules optimal]

2,048 calibration images; BatchNorm corrected relative to the original on 512 of them. Accuracy is that on the test
split, or on its first --images; nothing is chosen by it. (The published network was trained on every image that could
serve for validation: it answers 99.8 % of them.) Resumable: rows that OUT holds already are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import torch

import rankfold as rf
from rankfold import zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--methods", nargs="+", default=["project", "truncate", "tucker", "cp"])
    parser.add_argument("--rules", nargs="+", default=["optimal", "local", "global", "iterative"])
    parser.add_argument("--images", type=int, default=10_000, help="of the test split")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = zoo.load_data("cifar10")
    test = data.test.subset(torch.arange(given.images))
    original = zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    done = {(row["method"], row["rule"], row["asked"]) for row in rows}
    statistics = None
    for method in given.methods:
        for rule in given.rules:
            for kept in given.kept:
                if (method, rule, kept) in done:
                    continue
                calibration = rf.Calibration(statistics=statistics)
                start = time.perf_counter()
                try:
                    plan = rf.plan(original, rf.Flops(kept), method, data.train, rule=rule, calibration=calibration)
                except rf.BudgetError as error:
                    row = {"method": method, "rule": rule, "asked": kept, "missed": str(error)}
                else:
                    statistics = plan.statistics or statistics
                    model = rf.apply_(copy.deepcopy(original), plan)
                    seconds = time.perf_counter() - start
                    rf.reestimate_(model, original, data.train, samples=512)
                    row = {
                        "method": method,
                        "rule": rule,
                        "asked": kept,
                        "flops": plan.after.flops / plan.before.flops,
                        "params": plan.after.params / plan.before.params,
                        "accuracy": rf.evaluate(model, test).accuracy,
                        "images": given.images,
                        "seconds": seconds,
                    }
                rows.append(row)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(rows, indent=1) + "\n")
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
