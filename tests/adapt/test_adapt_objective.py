"""The start of an adapter that is taken from gradients follows the objective that was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.adapt import updates
from rankfold.pipeline.adaptation import AdaptSettings, adapt

WAYS = (rf.deep_lora_, rf.geolora_, rf.debora_)
X = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).eval()


def first(output, batch):
    """Of the first output alone, so that the gradient of the last layer has one row."""
    return (output[:, 0] - batch[1][:, 0]).square().mean()


def inwards(adapted) -> torch.Tensor:
    """The one direction that an update of rank 1 reads its input by."""
    return nn.functional.normalize(adapted.matrices()[1].detach()[0], dim=0)


@pytest.mark.parametrize("way", WAYS)
def test_directions_are_those_of_its_gradient(way):
    y = torch.randn(96, 4, generator=torch.Generator().manual_seed(2))
    base = network()
    first(base(X), (X, y)).backward()
    row = nn.functional.normalize(base[2].weight.grad[0], dim=0)
    asked = {"asked": {"objective": rf.objective("first", loss=first)}, "told by the data": {}}
    found = {}
    for what, how in asked.items():
        model = way(network(), {"2": 1}, data=(X, y), **how)
        found[what] = float((inwards(updates(model)["2"]) @ row).abs())
    assert found["asked"] == pytest.approx(1, abs=1e-5)
    assert found["told by the data"] < 0.99


@pytest.mark.parametrize("method", ["deep-lora", "geolora", "debora"])
def test_what_the_data_do_not_tell_is_adapted_by_what_was_asked_for(method, tmp_path):
    y = X[:, :7] @ torch.randn(7, 7, generator=torch.Generator().manual_seed(2))  # seven targets, four outputs
    asked = rf.objective("mean", loss=lambda output, batch: (output.mean(1) - batch[1].mean(1)).square().mean())
    parts = tuple((X[part], y[part]) for part in (slice(64), slice(64, 80), slice(80, 96)))
    settings = AdaptSettings(method, params=150, epochs=5, batch_size=8, learning_rate=1e-2)
    found = adapt(network(), parts, settings, tmp_path, objective=asked)
    assert found.objective == "mean"
    assert found.after.loss < 0.9 * found.before.loss
