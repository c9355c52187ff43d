"""The networks of table 1 of the C-DLN paper: a penultimate layer that is ordinary, a deep linear network, or a
compressed one; fully connected on FashionMNIST, a vision transformer on CIFAR-10.

Not in the paper, found by counting: 784 units a layer give its 1.85, 3.08 and 1.30 million parameters of MLPs, patches
of 4 × 4 pixels its 25.2, 44.1 and 23.8 million of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from rankfold.induce import cdln_, overparametrize_
from rankfold.train import Recipe
from rankfold.zoo import Data
from rankfold.zoo.networks.fcn import FCN
from rankfold.zoo.networks.vit import ViT

DEPTH = 3  # of the deep linear networks
RANK_PER_CLASS = 4  # the paper: r̂ = 4 d_y
VARIANTS = ("plain", "dln", "c-dln", "c-dln-gradient")  # the last is ours: subspaces from the gradient of the loss
MLP = Recipe(
    epochs=30, batch_size=128, optimizer="adam", learning_rate=4e-4, weight_decay=0.0, schedule="cosine", warmup=0.0
)
MLP_PAPER = replace(
    MLP, epochs=40, optimizer="sgd", learning_rate=5e-3, momentum=0.0, nesterov=False, schedule="constant"
)
VIT = replace(MLP, epochs=100, learning_rate=1e-4)  # rate and schedule are the paper's
Published = tuple[float, float, float, float, float, float, float]


@dataclass(frozen=True)
class Family:
    """Rows of table 1. ``width`` of the layers; ``depth`` counts matrices, or blocks of a transformer.

    ``published``: accuracy (%) and its deviation, seconds and their deviation, multiply-adds, training memory (MB),
    parameters (M).
    """

    title: str
    data: str
    width: int
    depth: int
    stable: Recipe
    paper: Recipe
    quick_epochs: int
    published: Mapping[str, Published]


FAMILIES = {
    "mlp": Family(
        "MLPs", "fashion-mnist", 784, 4, MLP, MLP_PAPER, 25,
        {
            "plain": (89.87, 0.216, 83.02, 20.87, 2.370e7, 25.80, 1.850),
            "dln": (90.20, 0.040, 95.82, 12.29, 3.940e7, 35.90, 3.080),
            "c-dln": (90.28, 0.104, 54.85, 2.950, 1.670e7, 21.60, 1.300),
        },
    ),
    "vit": Family(
        "vision transformers", "cifar10", 512, 6, VIT, VIT, 2,
        {
            "plain": (84.72, 0.120, 60 * 32.80, 60 * 2.786, 2.100e10, 7110.0, 25.20),
            "dln": (84.90, 0.230, 60 * 45.80, 60 * 2.638, 3.640e10, 7811.0, 44.10),
            "c-dln": (84.89, 0.187, 60 * 31.40, 60 * 1.855, 1.980e10, 7090.0, 23.80),
        },
    ),
}  # fmt: skip
Start = Literal["correlation", "gradient", "random"]


@dataclass(frozen=True)
class Case:
    """One training. ``rate_scale`` and ``start`` as in ``cdln_``."""

    family: str
    variant: str
    recipe: Recipe
    data: str
    width: int
    depth: int
    train_samples: int | None = None
    start: Start = "correlation"
    rate_scale: float = 1.0

    @property
    def title(self) -> str:
        return f"{self.family}-{self.variant}-seed{self.recipe.seed}"


def build(case: Case, data: Data) -> nn.Module:
    """The network before training: the same first weights for every variant of a seed."""
    seed, classes = case.recipe.seed, data.classes or 10
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network, penultimate = _network(case, data, classes)
    generator = torch.Generator().manual_seed(seed)
    if case.variant == "dln":
        overparametrize_(network, DEPTH, penultimate, start="orthogonal", inner="paper", generator=generator)
    elif case.variant.startswith("c-dln"):
        rank = min(RANK_PER_CLASS * classes, case.width // 4)
        start: Start = "gradient" if case.variant == "c-dln-gradient" else case.start
        given = None if start == "random" else data.train
        cdln_(
            network, penultimate, rank, depth=DEPTH, data=given, start=start, rate_scale=case.rate_scale,
            generator=generator,
        )  # fmt: skip
    return network


def _network(case: Case, data: Data, classes: int) -> tuple[nn.Module, str]:
    """The plain network and its penultimate layer."""
    image = next(iter(data.train.batches(1)))[0]
    if case.family == "mlp":
        return FCN(image.numel(), classes, case.depth, case.width, batch_norm=False), "hidden.5"
    side = image.shape[-1]
    heads, patch = max(2, case.width // 64), max(2, side // 8)
    network = ViT(case.depth, heads, classes, image.shape[1], side, patch, case.width, expansion=6)
    return network, f"blocks.{case.depth - 1}.mlp.2"
