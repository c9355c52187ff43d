"""ResNet20 on CIFAR-10: a trained network made low-rank as products (LoRITa), compressed from data, fine-tuned.

    python benchmarks/lorita_beyond.py WEIGHTS --out runs/beyond

The paper's smallest published network (−63.2 % FLOPs, −71 % parameters) has 90.17 %. Three stages: products of N = 3
factors from a balanced start, trained under weight decay with the original as teacher; plan (sequential) and apply;
fine-tuning with the same teacher, first at a higher rate, then at a lower one with an average of the weights. The
original was trained on all 50,000 images, and so is the fine-tuning: no image is left to choose an epoch by, and each
stage is taken as it ends. Resumable.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

import torch

import rankfold as rf
from rankfold import zoo
from rankfold.compress.repair.finetune import FINETUNE
from rankfold.induce import LORITA
from rankfold.pipeline import calibration_part, compressed_copy
from rankfold.train import Augment, Distill, Progress

BUDGETS = ("flops=0.37", "params=0.29")
PRODUCTS = replace(
    LORITA,
    epochs=10,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.008,
    weight_decay=8e-3,
    warmup=0.1,
    clip_norm=20.0,
    augment=Augment(),
    distill=Distill(),
    precision="auto",
)
FIRST = replace(FINETUNE, epochs=15, learning_rate=0.003, augment=Augment())
SECOND = replace(FIRST, epochs=10, learning_rate=0.001, warmup=0.05, ema=0.999)
SAMPLES = 2048


def tell(event: Progress) -> None:
    if event.finished is not None:
        print(json.dumps(event.finished.to_dict()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--epochs", type=int, default=PRODUCTS.epochs, help="of training as products")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = zoo.load_data("cifar10")
    every = replace(
        data.train,
        inputs=torch.cat([data.train.inputs, data.validation.inputs]),
        labels=torch.cat([data.train.labels, data.validation.labels]),
    )
    original = zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()
    network = copy.deepcopy(original)
    rf.overparametrize_(network, depth=3)
    recipe = replace(PRODUCTS, epochs=given.epochs)
    rf.fit(network, data.train, None, recipe, teacher=original, directory=given.out / "products", progress=tell)
    rf.fold_(network)
    network.eval()

    calibration, file = calibration_part(data.train, SAMPLES, 0), given.out / "plan.json"
    plan = rf.Plan.load(file) if file.exists() else rf.plan(network, BUDGETS, "sequential", calibration)
    plan.save(file)
    small, _ = compressed_copy(network, plan, calibration, data.validation)
    result = {
        "flops_kept": plan.after.flops / plan.before.flops,
        "params_kept": plan.after.params / plan.before.params,
        "test_dense": rf.evaluate(network, data.test).accuracy,
        "test_compressed": rf.evaluate(small, data.test).accuracy,
    }
    print(json.dumps(result), flush=True)
    for name, recipe in (("first", FIRST), ("second", SECOND)):
        rf.fit(small, every, None, recipe, teacher=original, directory=given.out / name, progress=tell)
        small.eval()
        result[f"test_{name}"] = rf.evaluate(small, data.test).accuracy
        print(json.dumps(result), flush=True)
    rf.save(small, plan, given.out / "small")
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
