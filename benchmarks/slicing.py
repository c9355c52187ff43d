"""ResNet20 on CIFAR-10: slices of one compressed network against planning anew, with data, at the same budgets.

    python benchmarks/slicing.py WEIGHTS --out slicing.json [--start 0.7] [--kept 0.6 0.5 0.4] [--images 2000]

The network is compressed to --start of its FLOPs (project, optimal ranks, 2,048 calibration images, BatchNorm corrected
on 512 of them, no fine-tuning), its bottlenecks are measured on the same images, and it is sliced without data. Beside
it: the same slice with BatchNorm corrected on 512 images; and the original compressed to that budget anew. Accuracy on
--images of the validation split (which the published network was trained on: it flatters all three alike), and, with
--test, on the whole test split, of which nothing is chosen. Sizes are of files without and with what slices need.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rankfold as rf
from rankfold import zoo
from rankfold.compress.slicing.slicing import slice_costs
from rankfold.pipeline import calibration_part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=float, default=0.7)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.6, 0.5, 0.4])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = zoo.load_data("cifar10")
    part = calibration_part(data.train, 2048, 0)
    validation = data.validation.subset(torch.arange(given.images))
    original = zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()

    def scores(model: nn.Module) -> dict[str, float]:
        found = {"validation": rf.evaluate(model, validation, role="validation").accuracy}
        return found | ({"test": rf.evaluate(model, data.test, role="test").accuracy} if given.test else {})

    plan = rf.plan(original, rf.Flops(given.start), "project", part)
    small = corrected(rf.apply_(copy.deepcopy(original), plan), original, part)
    began = time.perf_counter()
    known = rf.bottlenecks(small, part)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in small.state_dict().values())
    rows: list[dict[str, Any]] = [
        {"kept": given.start, "start": scores(small), "seconds to measure": time.perf_counter() - began,
         "bytes of weights": weights, "bytes of bottlenecks": len(known.to_bytes())},
    ]  # fmt: skip
    tell(rows, given.out)
    for kept in given.kept:
        row: dict[str, Any] = {"kept": kept}
        began = time.perf_counter()
        try:
            sliced = rf.slice_(rf.Stored(copy.deepcopy(small), plan, {}, known), rf.Flops(kept))
        except rf.BudgetError as error:
            row["missed"] = str(error)
        else:
            row |= {"seconds to slice": time.perf_counter() - began, "slice": scores(sliced.model)}
            predicted = sum(change for _, change in slice_costs(plan, sliced.plan).values()) / known.energy
            row |= {"predicted change": predicted, "measured change": change(small, sliced.model, part, known.energy)}
            row["slice, BatchNorm corrected"] = scores(corrected(sliced.model, small, part))
        began = time.perf_counter()
        calibration = rf.Calibration(statistics=plan.statistics)
        anew = rf.plan(original, rf.Flops(kept), "project", part, calibration=calibration)
        network = corrected(rf.apply_(copy.deepcopy(original), anew), original, part)
        row |= {"seconds anew": time.perf_counter() - began, "anew": scores(network)}
        rows.append(row)
        tell(rows, given.out)


def corrected(model: nn.Module, reference: nn.Module, part: Any) -> nn.Module:
    rf.reestimate_(model, reference, part, samples=512)
    return model


def change(before: nn.Module, after: nn.Module, part: Any, energy: float) -> float:
    """Squared change of the logits, each less their mean, over their variance; on 1,024 calibration images."""
    total, count = 0.0, 0
    for images, *_ in part.batches(256):
        if count < 1024:
            with torch.no_grad():
                moved = (after(images) - before(images)).double()
            total += float((moved - moved.mean(-1, keepdim=True)).square().sum())
            count += len(images)
    return total / count / energy


def tell(rows: list[dict[str, Any]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
