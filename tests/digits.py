"""A small network trained on the bundled digits, once for all tests that need one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rankfold.train import Recipe, fit
from rankfold.zoo import Data, load_data, model


@lru_cache(maxsize=1)
def digits() -> Data:
    return load_data("digits")


@lru_cache(maxsize=1)
def _state() -> dict[str, torch.Tensor]:
    network = model("digits-cnn")
    fit(network, digits().train, None, Recipe(epochs=3, batch_size=64, learning_rate=0.05))
    return network.state_dict()


def trained() -> nn.Module:
    """A fresh copy, in eval mode."""
    network = model("digits-cnn")
    network.load_state_dict(_state())
    return network.eval()


def tiny() -> nn.Module:
    """A still smaller network, where only what happens to it matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    fit(network, digits().train, None, Recipe(epochs=1, batch_size=64))
    return network.eval()


def write_weights(file: Path) -> Path:
    save_file({name: value.contiguous() for name, value in _state().items()}, file)
    return file
