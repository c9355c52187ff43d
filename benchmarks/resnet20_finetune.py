"""ResNet20 on CIFAR-10 at −54.7 % FLOPs and −61 % parameters: accuracy after 3, 10 and 30 epochs of fine-tuning.

    python benchmarks/resnet20_finetune.py WEIGHTS --epochs 30 --out runs/resnet20-30

Compared with LoRITa's published 91.0 % at this size (from a network trained for it). Validation chooses the epoch; the
test split is evaluated once before and once after fine-tuning. Resumable: run the same command again.
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
from rankfold.compress.repair.finetune import finetune_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--flops", type=float, default=0.453)
    parser.add_argument("--params", type=float, default=0.39)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, help="peak learning rate; the default recipe's otherwise")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    data = zoo.load_data("cifar10")
    original = zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()
    start = time.perf_counter()
    plan = rf.plan(original, [rf.Flops(given.flops), rf.Params(given.params)], "project", data.train)
    planned = time.perf_counter() - start
    model = copy.deepcopy(original)
    rf.apply_(model, plan)
    rf.reestimate_(model, original, data.train, samples=512)
    after = rf.model_cost(model, torch.zeros(1, 3, 32, 32))
    result = {
        "flops_kept": after.flops / plan.before.flops,
        "params_kept": after.params / plan.before.params,
        "plan_seconds": planned,
        "test_before_finetuning": rf.evaluate(model, data.test).accuracy,
        "validation_before_finetuning": rf.evaluate(model, data.validation).accuracy,
    }
    print(json.dumps(result), flush=True)
    recipe = finetune_recipe(data, given.epochs)
    changes = {"seed": given.seed} | ({"learning_rate": given.rate} if given.rate else {})
    recipe = type(recipe).from_dict({**recipe.to_dict(), **changes})
    start = time.perf_counter()

    def tell(event: rf.train.Progress) -> None:
        if event.finished is not None:
            print(json.dumps(event.finished.to_dict()), flush=True)

    history = rf.finetune(model, data, teacher=original, recipe=recipe, directory=given.out, progress=tell)
    result |= {
        "epochs": given.epochs,
        "learning_rate": recipe.learning_rate,
        "finetune_seconds": time.perf_counter() - start,
        "best_epoch": history.best_epoch,
        "validation": history.best.validation_accuracy if history.best else None,
        "test": rf.evaluate(model, data.test).accuracy,
        "threads": given.threads,
        "seed": given.seed,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
