"""What each of two processes does for test_adapt_parallel.py, and one alone."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

import rankfold as rf
from rankfold.train import Recipe, fit
from rankfold.zoo import load_data

RECIPE = Recipe(epochs=1, batch_size=64, optimizer="sgd", learning_rate=0.02, weight_decay=0.0)


def adapted(kind: str) -> dict[str, list[float]]:
    """The state of a small network after one epoch of adaptation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)).double()
    data = load_data("digits").train
    x, y = next(iter(data.batches(512)))
    given = (x.double(), y)
    if kind == "debora":
        rf.debora_(model, 4, 4.0, data=given)
        make = rf.Debora
    else:
        rf.geolora_(model, 4, data=given)
        make = partial(rf.GeoLora, window=4, tolerance=0.05)
    fit(model, given, None, RECIPE, optimizer=make)
    return {name: value.flatten().tolist() for name, value in model.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, rank = Path(sys.argv[1]), sys.argv[2]
    (place / f"{rank}.json").write_text(json.dumps({kind: adapted(kind) for kind in ("debora", "geolora")}))
