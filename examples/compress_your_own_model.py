"""Compress a network of your own with data of your own, in a few lines; replace `network` and `data` by yours.

    python examples/compress_your_own_model.py

Needs nothing but rankfold: a small network learns to tell noisy copies of eight patterns apart.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.data import TensorDataset

import rankfold as rf
from rankfold.train import fit


def network() -> nn.Module:
    """The architecture; called again wherever a fresh copy is needed."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 8),
    )


def data(count: int, seed: int) -> TensorDataset:
    """Pairs (image, class); any torch data set or loader of such pairs will do."""
    patterns = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (count,), generator=generator)
    return TensorDataset(patterns[labels] + 2.0 * torch.randn(count, 1, 12, 12, generator=generator), labels)


def main() -> None:
    train, validation, test = data(1500, seed=1), data(500, seed=2), data(500, seed=3)
    original = network()
    fit(original, train, validation, rf.Recipe(epochs=3, learning_rate=0.05))  # or load your trained weights

    plan = rf.plan(original, ["flops=0.3", "params=0.4"], data=train)  # nothing changes yet
    for entry in plan.entries:
        print(f"{entry.site}: {entry.form.value}, rank {entry.rank}, error {entry.predicted_error:.3f}")

    small = rf.apply_(copy.deepcopy(original), plan)
    rf.reestimate_(small, original, train)  # BatchNorm statistics
    rf.save(small, plan, "my-small-network")
    again = rf.load("my-small-network", network()).model

    for name, model in (("original", original), ("compressed", small), ("loaded", again)):
        cost = rf.model_cost(model, test[0][0].unsqueeze(0))
        accuracy = rf.evaluate(model, test).accuracy
        print(f"{name}: {cost.params:,} parameters, {cost.flops:,} FLOPs, test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
