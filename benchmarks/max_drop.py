"""A budget in quality on ResNet20: what the search finds beside fifty plans that are tried one by one.

    python benchmarks/max_drop.py WEIGHTS --out max_drop.json [--drops 0.5 2] [--seeds 0 1 2] [--images 5000]

For each seed: a profile (project, 2,048 calibration images drawn with that seed); fifty plans at evenly spaced kept
FLOPs from 20 to 99 %, tried one by one from the smallest on the searching half of the first --images validation images,
until one is good enough (the larger ones cannot be the smallest); and a search for each drop on the same half, judged
on the other. BatchNorm is corrected on --repair of the calibration images. Resumable: what a seed has evaluated is kept
beside OUT. (The published network was trained on the validation images: it answers 99.8 % of them.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import rankfold as rf
from rankfold import zoo
from rankfold.compress.repair.batchnorm import Reference
from rankfold.pipeline import calibration_part
from rankfold.pipeline.quality.halves import halves
from rankfold.pipeline.quality.smallest import Hunt
from rankfold.pipeline.quality.value import MaxDrop
from rankfold.run.progress import Tell

FIFTY = torch.linspace(0.20, 0.99, 50).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drops", type=float, nargs="+", default=[0.5, 2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=5_000, help="of the validation split")
    parser.add_argument("--repair", type=int, default=2_048, help="calibration images for BatchNorm")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = zoo.load_data("cifar10")
    validation = data.validation.subset(torch.arange(given.images))
    original = zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        calibration = calibration_part(data.train, 2048, seed)
        known = rf.profile(original, calibration)
        repair, parts, reference = (
            calibration.subset(torch.arange(given.repair)),
            halves(validation),
            Reference(original),
        )
        for drop in given.drops:
            hunt = Hunt(
                original, known, MaxDrop(drop), (), "optimal", repair, parts, rf.Classification(), Tell(say=say),
                reference, given.out.with_suffix(f".{seed}.tried.json"),
            )  # fmt: skip
            found = hunt.found()
            tried, least = one_by_one(hunt)
            searched = min(point.flops for point in found.quality.tried if point.met)
            rows.append(
                {
                    "seed": seed, "of_fifty": tried, "max_drop": drop, "searched_flops": searched, "fifty_flops": least,
                    "ratio": searched / least, "judged_flops": found.plan.after.flops,
                    "kept": found.plan.after.flops / found.plan.before.flops, "images": given.images,
                    "quality": found.quality.to_dict(),
                }
            )  # fmt: skip
            given.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "quality"}), flush=True)


def one_by_one(hunt: Hunt) -> tuple[int, int]:
    """How many of the fifty were evaluated, and the FLOPs of the smallest that is good enough."""
    for number, fraction in enumerate(FIFTY, 1):
        point = hunt.attempt(fraction)
        if point is not None and hunt.good(point.drop):
            return number, point.flops
    return len(FIFTY), 0


def say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    main()
