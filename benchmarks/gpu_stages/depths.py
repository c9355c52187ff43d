"""Networks trained as products of N matrices for as many epochs as fit: how much of each can be removed afterwards."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import rankfold as rf
from gpu_stages.arrays import cifar10, noise
from gpu_stages.stage import Context, stage
from rankfold import zoo
from rankfold.costs import model_cost
from rankfold.papers.lorita.truncation import RULES, by_kind, curve, decomposed, needed
from rankfold.pipeline import calibration_part
from rankfold.train import Augment
from rankfold.zoo.networks.resnet import CifarResNet
from rankfold.zoo.networks.vgg import VGG
from rankfold.zoo.networks.vit import ViT

TRAINING, LATER = 0.75, 45  # share of the time for training; seconds below which nothing more is compressed
MOST_EPOCHS = 100
DROP = 0.001
FRACTIONS = tuple(percent / 100 for percent in (2, 3, 5, 8, 10, 12, 15, 18, 22, 28, 35, 45, 60, 100))
CNN = rf.Recipe(batch_size=256, learning_rate=0.05, weight_decay=1e-3, clip_norm=5.0, augment=Augment(4, flip=True))
ATTENTION = "*attention.*"


@dataclass(frozen=True)
class Task:
    """A network by N: how it is made, small in a dry run, what is over-parametrised, and the published sizes."""

    build: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    depths: tuple[int, ...]
    recipe: rf.Recipe
    where: str | None = None
    sizes: Mapping[str, list[str]] = field(default_factory=dict)  # name → budgets


RESNET20 = Task(
    lambda: zoo.model("resnet20"),
    lambda: CifarResNet(1, 10),
    (1, 2, 3),
    CNN,
    sizes={"−54.7/−61 %": ["flops=0.453", "params=0.39"], "−63.2/−71 %": ["flops=0.368", "params=0.29"]},
)
VGG16 = Task(
    lambda: zoo.model("vgg16-bn"),
    lambda: VGG(((8,), (16,), (16,), (16,), (32,)), 10),
    (1, 3),
    replace(CNN, weight_decay=5e-4),
    sizes={"−84.8/−94.6 %": ["flops=0.152", "params=0.054"]},
)
VIT = Task(
    lambda: zoo.model("vit-l4-h8"),
    lambda: ViT(1, 2, 10, width=16),
    (1, 2),
    rf.Recipe(batch_size=256, optimizer="adam", learning_rate=3e-4, weight_decay=1e-4, augment=Augment(4, flip=True)),
    ATTENTION,
)


@stage("resnet20", minutes=8, least=3)
def resnet20(context: Context) -> dict[str, Any]:
    """ResNet20 on CIFAR-10 with N = 1, 2, 3, alike in epochs: accuracy, retained values, at the published sizes."""
    return compared("resnet20", RESNET20, context)


@stage("vgg16-products", minutes=8, least=3)
def vgg16_products(context: Context) -> dict[str, Any]:
    """VGG16-BN on CIFAR-10 with N = 1, 3, alike in epochs: accuracy, retained values, at the published size."""
    return compared("vgg16", VGG16, context)


@stage("vit", minutes=8, least=3)
def vit(context: Context) -> dict[str, Any]:
    """ViT-L4-H8 on CIFAR-10 with N = 1, 2, attention over-parametrised: accuracy, retained values of attention."""
    return compared("vit-l4-h8", VIT, context)


def compared(name: str, task: Task, context: Context) -> dict[str, Any]:
    """Every N for the same number of epochs, from one seed; then what of it can be removed."""
    data = noise(32) if context.dry else cifar10(context.data)
    depths = task.depths[-1:] if context.dry else task.depths
    networks = {depth: _composed(task, depth, context) for depth in depths}
    seconds = {depth: 0.0 if context.dry else _epoch(network, data, task) for depth, network in networks.items()}
    epochs = 1 if context.dry else int(TRAINING * context.seconds_left / sum(seconds.values()))
    if epochs < 1:
        raise TimeoutError(
            f"an epoch of every N takes {sum(seconds.values()):.0f} s, {context.seconds_left:.0f} are left"
        )
    epochs = min(epochs, MOST_EPOCHS)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for depth, network in networks.items():
        recipe = replace(task.recipe, epochs=epochs, precision="auto", batch_size=16 if context.dry else 256)
        began = time.monotonic()
        rf.fit(network, data.train, data.validation, recipe)
        rf.fold_(network).eval()
        row: dict[str, Any] = {"N": depth, "accuracy": rf.evaluate(network, data.test).accuracy, "epochs": epochs}
        row["seconds of an epoch"] = round((time.monotonic() - began) / epochs, 2)
        row |= _retained(network, data, task, context)
        for size, budgets in list(task.sizes.items())[: 1 if context.dry else None]:
            if not context.dry and context.seconds_left < LATER:
                row[size] = f"left out: {context.seconds_left:.0f} s are left"
                continue
            row[size], fault = _compressed(f"{name}-n{depth}", network, budgets, data, context)
            wrong += [fault] if fault else []
        rows.append(row)
    said = ", ".join(f"N={row['N']} {row['accuracy']:.2%}" for row in rows)
    return {
        "said": f"{epochs} epochs: {said}",
        "wrong": wrong,
        "rows": rows,
        "seed": 0,
        "recipe": task.recipe.to_dict(),
    }


def _composed(task: Task, depth: int, context: Context) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = task.small() if context.dry else task.build()
    if depth > 1:
        rf.overparametrize_(network, depth, task.where)
    return network.to(context.device)


def _epoch(network: nn.Module, data: zoo.Data, task: Task) -> float:
    """What an epoch will take, from a tenth of one that is thrown away."""
    tenth = data.train.take(len(data.train) // 10, torch.Generator().manual_seed(0))
    began = time.monotonic()
    rf.fit(copy.deepcopy(network), tenth, None, replace(task.recipe, epochs=1, precision="auto"))
    return 10 * (time.monotonic() - began)


def _retained(network: nn.Module, data: zoo.Data, task: Task, context: Context) -> dict[str, Any]:
    """The smallest fraction of singular values at which validation accuracy drops by at most 0.1 points."""
    points = curve(
        decomposed(network, task.where), data.validation, RULES, FRACTIONS[::6] if context.dry else FRACTIONS,
        by_kind, ("matrices",),
    )  # fmt: skip
    return {f"retained, {rule}": needed(points, rule, DROP) for rule in RULES}


def _compressed(
    name: str, network: nn.Module, budgets: list[str], data: zoo.Data, context: Context
) -> tuple[dict[str, Any], str]:
    """At a size, without fine-tuning; weights are kept; and what is wrong with its cost."""
    part = calibration_part(data.train, 32 if context.dry else 2048, 0)
    example = next(iter(part.batches(1)))[0].to(context.device)
    budgets = ["params=0.6"] if context.dry else budgets
    plan = rf.plan(network, budgets, "project", part, example=example)
    small = rf.apply_(copy.deepcopy(network), plan)
    rf.reestimate_(small, network, part)
    cost = model_cost(small, example)
    kept = context.keep(f"{name}-{budgets[0].replace('=', '')}", small.state_dict())
    found = {
        "accuracy": rf.evaluate(small, data.test).accuracy,
        "flops kept": cost.flops / plan.before.flops,
        "params kept": cost.params / plan.before.params,
        "weights": kept,
    }
    return found, "" if cost == plan.after else f"{name}: the plan says {plan.after}, the network costs {cost}"
