"""VGG16-BN on CIFAR-10: trained, compressed at several budgets, repaired, fine-tuned."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

import rankfold as rf
from gpu_stages.arrays import cifar10, noise
from gpu_stages.stage import Context, stage
from rankfold import zoo
from rankfold.costs import model_cost
from rankfold.pipeline import calibration_part
from rankfold.zoo.networks.vgg import VGG

KEPT = (0.5, 0.3, 0.15)  # of the FLOPs
SHARE = 0.6  # of the time for training; what is left compresses and fine-tunes


@stage("vgg16", minutes=5, least=3)
def vgg16(context: Context) -> dict[str, Any]:
    """VGG16-BN on CIFAR-10: accuracy on the test split at three FLOP budgets, before and after fine-tuning."""
    data = noise(32) if context.dry else cifar10(context.data)
    network = (_narrow() if context.dry else zoo.model("vgg16-bn")).to(context.device)
    began = time.monotonic()
    seconds = _seconds_of_an_epoch(network, data, context)
    epochs = 1 if context.dry else max(2, min(60, int(SHARE * context.seconds_left / seconds)))
    tuning = 1 if context.dry else max(1, min(10, epochs // 6))
    rf.fit(network, data.train, data.validation, _recipe(context, epochs))
    trained = time.monotonic() - began
    network.eval()
    part = calibration_part(data.train, 32 if context.dry else 2048, 0)
    example = next(iter(part.batches(1)))[0].to(context.device)
    before = model_cost(network, example)
    rows = [_row("original", rf.evaluate(network, data.test).accuracy, before, before)]
    wrong: list[str] = []
    for kept in KEPT[:1] if context.dry else KEPT:
        if context.seconds_left < (0 if context.dry else 45):
            rows.append({"network": f"flops={kept}", "left out": f"{context.seconds_left:.0f} s are left"})
            continue
        plan = rf.plan(network, f"flops={kept}", "project", part, example=example)
        small = rf.apply_(copy.deepcopy(network), plan)
        rf.reestimate_(small, network, part)
        cost = model_cost(small, example)
        if cost != plan.after:
            wrong.append(f"flops={kept}: the plan says {plan.after}, the network costs {cost}")
        rows.append(_row(f"flops={kept}", rf.evaluate(small, data.test).accuracy, cost, before))
        if context.dry or context.seconds_left > 2 * tuning * seconds:
            rf.finetune(small, data, teacher=network, recipe=_recipe(context, tuning, teacher=True))
            rows.append(_row(f"flops={kept}, fine-tuned", rf.evaluate(small, data.test).accuracy, cost, before))
    said = ", ".join(f"{row['network']} {row['accuracy']:.2%}" for row in rows if "accuracy" in row)
    return {
        "said": said,
        "wrong": wrong,
        "rows": rows,
        "epochs": epochs,
        "fine-tuning epochs": tuning,
        "seconds of training": round(trained, 1),
        "seconds of an epoch": round(seconds, 2),
        "seed": 0,
    }


def _narrow() -> torch.nn.Module:
    """Something of the same kind that takes a second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VGG(((8,), (16,), (16,), (16,), (32,)), 10)


def _row(name: str, accuracy: float, cost: Any, before: Any) -> dict[str, Any]:
    return {
        "network": name,
        "accuracy": accuracy,
        "flops kept": cost.flops / before.flops,
        "params kept": cost.params / before.params,
    }


def _recipe(context: Context, epochs: int, *, teacher: bool = False) -> rf.Recipe:
    return rf.Recipe(
        epochs=epochs,
        batch_size=16 if context.dry else 256,
        learning_rate=0.01 if teacher else 0.05,
        weight_decay=5e-4,
        augment=None if context.dry else _augment(),
        distill=rf.Distill() if teacher else None,
        precision="auto",
    )


def _augment() -> Any:
    from rankfold.train import Augment

    return Augment(4, flip=True)


def _seconds_of_an_epoch(network: torch.nn.Module, data: zoo.Data, context: Context) -> float:
    """What an epoch will take, from a tenth of one that is thrown away."""
    if context.dry:
        return 1.0
    tenth = data.train.take(len(data.train) // 10, torch.Generator().manual_seed(0))
    began = time.monotonic()
    rf.fit(copy.deepcopy(network), tenth, None, _recipe(context, 1))
    return 10 * (time.monotonic() - began)
