"""Jobs that are killed at any moment, in processes of their own; nothing here is a test."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import rankfold as rf
from rankfold.pipeline import Settings, compress


class Data:
    def __init__(self) -> None:
        x = torch.randn(1024, 16, generator=torch.Generator().manual_seed(0))
        parts = [TensorDataset(part, torch.arange(len(part)) % 4) for part in x.split((768, 128, 128))]
        self.train, self.validation, self.test = parts


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4)
        ).eval()  # fmt: skip


def compressing(place: Path) -> nn.Module:
    settings = Settings(curve=False, samples=256, finetune=3)
    return compress(network(), Data(), "params=0.5", settings=settings, directory=place).model


def fitting(place: Path) -> nn.Module:
    settings = Settings(curve=False, samples=256, method="sequential", slices=False)
    return compress(network(), Data(), "params=0.5", settings=settings, directory=place).model


def training(place: Path) -> nn.Module:
    model, data = network(), Data()
    rf.fit(model, data.train, data.validation, rf.Recipe(epochs=6, batch_size=32, learning_rate=0.01), directory=place)
    return model


def saving(place: Path) -> nn.Module:
    """One good network after another into the same directory."""
    model, data = network(), torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    known = rf.profile(model, data)
    for budget in ("params=0.6", "params=0.5") * 10:
        plan = known.plan(budget)
        small = rf.apply_(network(), plan, known)
        rf.save(small, plan, place, bottlenecks=rf.bottlenecks(small, data) if budget.endswith("5") else None)
    return small


JOBS = {job.__name__: job for job in (compressing, fitting, training, saving)}


def run(name: str, place: str) -> None:
    torch.set_num_threads(1)
    JOBS[name](Path(place))
