"""ResNet20 on CIFAR-10: a trained network made low-rank as products (LoRITa), compressed by projection, fine-tuned.

    python benchmarks/lorita_beyond.py WEIGHTS --out runs/beyond

The paper's smallest published network (−63.2 % FLOPs, −71 % parameters) has 90.17 %. Three stages: products of N = 3
factors from a balanced start, trained under weight decay with the original as teacher; plan and apply; fine-tuning with
the same teacher. Validation chooses the epoch of the fine-tuning; the products are taken as they end. Resumable.
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
from rankfold.induce import LORITA
from rankfold.train import Augment, Distill, checkpoint

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


def tell(event: rf.train.Progress) -> None:
    if event.finished is not None:
        print(json.dumps(event.finished.to_dict()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--epochs", type=int, default=PRODUCTS.epochs, help="of training as products; 0 for none")
    parser.add_argument("--finetune-epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = zoo.load_data("cifar10")
    original = zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()
    network = copy.deepcopy(original)
    if given.epochs:
        rf.overparametrize_(network, depth=3)
        place = given.out / "products"
        recipe = replace(PRODUCTS, epochs=given.epochs)
        rf.fit(network, data.train, data.validation, recipe, teacher=original, directory=place, progress=tell)
        # validation images were seen by the published network: its best epoch would be the start
        last = checkpoint.load(place)
        if last is not None:
            network.load_state_dict(last["model"])
        rf.fold_(network)
        network.eval()
    plan = rf.plan(network, BUDGETS, "project", data.train)
    small = rf.apply_(copy.deepcopy(network), plan)
    rf.reestimate_(small, network, data.train, samples=512)
    result = {
        "flops_kept": plan.after.flops / plan.before.flops,
        "params_kept": plan.after.params / plan.before.params,
        "test_dense": rf.evaluate(network, data.test).accuracy,
        "test_compressed": rf.evaluate(small, data.test).accuracy,
    }
    print(json.dumps(result), flush=True)
    if given.finetune_epochs:
        history = rf.finetune(
            small,
            data,
            teacher=original,
            epochs=given.finetune_epochs,
            directory=given.out / "finetune",
            progress=tell,
        )
        result |= {"best_epoch": history.best_epoch, "test": rf.evaluate(small, data.test).accuracy}
    rf.save(small, plan, given.out / "small")
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
