"""ResNet20 on CIFAR-10, compressed without training: projection, sequential projection, and ReLU-aware.

    python benchmarks/sequential.py WEIGHTS [--keep 0.7,0.5,0.4,0.3] [--methods sequential,relu,project] [--out FILE]

For each method and kept part of the FLOPs: how long planning took (processor seconds), the divergence on validation,
and the accuracy on validation and test. Nothing is chosen by the latter. One line of JSON for each; what is in FILE
already is not done again.
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
from rankfold.compress.planning.profile import Calibration
from rankfold.pipeline import calibration_part
from rankfold.pipeline.compression.repair import compressed_copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--keep", default="0.7,0.5,0.4,0.3")
    parser.add_argument("--methods", default="sequential,relu,project")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data, original = zoo.load_data("cifar10"), zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()
    calibration = calibration_part(data.train, given.samples, given.seed)
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for method in given.methods.split(","):
        for keep in map(float, given.keep.split(",")):
            if any((row["method"], row["keep"]) == (method, keep) for row in done):
                continue
            began = time.process_time()
            plan = rf.plan(
                original, f"flops={keep}", method, calibration, calibration=Calibration(given.samples, name="cifar10")
            )
            seconds = time.process_time() - began
            small, score = compressed_copy(copy.deepcopy(original), plan, calibration, data.validation)
            row = {
                "method": method,
                "keep": keep,
                "flops": plan.after.flops / plan.before.flops,
                "params": plan.after.params / plan.before.params,
                "processor_seconds": round(seconds, 1),
                "validation": score.accuracy,
                "validation_loss": score.loss,
                "test": rf.evaluate(small, data.test).accuracy,
                "notes": plan.notes,
            }
            plan.save(given.out.parent / f"{given.out.stem}-{method}-{keep:g}.json")
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
