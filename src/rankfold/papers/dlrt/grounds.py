"""What ways to low rank are compared on: small networks and their data, how they are trained, how far they shrink."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from rankfold.papers import quick
from rankfold.papers.dlrt.tasks import fcn, windows_of
from rankfold.train import Recipe
from rankfold.zoo import Data, load_data
from rankfold.zoo import model as built

LETTERS = 64  # of a window
SHAKESPEARE = "tiny-shakespeare"


@dataclass(frozen=True)
class Ground:
    """``network`` draws from the global generator. ``data``: its name. ``shares`` of the parameters that are left.
    ``recipe``: its learning rate is that of each way's first trial; ``rates`` are those that others draw from.
    ``without``: the ways that find no layer here, with the reason."""

    network: Callable[[], nn.Module]
    data: str
    shares: Sequence[float]
    recipe: Recipe
    rates: Sequence[float]
    without: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Data:
        return characters() if self.data == SHAKESPEARE else load_data(self.data)


def lenet5() -> nn.Module:
    """As in the DLRT paper: 430,500 weights without biases."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def _quick() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))


def _transformer() -> nn.Module:
    """A decoder of two blocks of width 64, over single characters."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise ValueError("the transformer needs transformers: pip install 'rankfold[hf]'") from None
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=characters().train.vocabulary, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LETTERS, tie_word_embeddings=False,
            use_cache=False,
        )
    )  # fmt: skip


@cache
def characters() -> Data:
    """Windows of characters of Shakespeare's plays."""
    root = os.environ.get("RANKFOLD_DATA")
    file = Path(root or "") / "text" / "tinyshakespeare.txt"
    if not root or not file.exists():
        raise ValueError(
            "the transformer needs text/tinyshakespeare.txt in the folder that RANKFOLD_DATA names: put it there, or "
            "leave the network out (--models)"
        )
    text = file.read_text(encoding="utf-8")
    known = {letter: number for number, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[letter] for letter in text])
    return windows_of(SHAKESPEARE, ids, LETTERS, len(known), "characters")


_SGD = Recipe(batch_size=128, learning_rate=0.05, nesterov=False, weight_decay=0.0)
_ADAM = Recipe(batch_size=32, learning_rate=5e-3, optimizer="adam", weight_decay=0.0)
_RATES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
GROUNDS = {
    "fcn": Ground(partial(fcn, 784, 256), "mnist", (0.1, 0.05), _SGD, _RATES),
    "lenet5": Ground(lenet5, "mnist", (0.1, 0.05), _SGD, _RATES),
    "transformer": Ground(_transformer, SHAKESPEARE, (0.25,), _ADAM, tuple(rate / 10 for rate in _RATES)),
    "resnet20": Ground(
        partial(built, "resnet20"),
        "cifar10",
        (0.3,),
        replace(_SGD, batch_size=64),
        _RATES,
        {"C-DLN": "it compresses linear layers, and the only one is the last"},
    ),
    "quick": Ground(_quick, quick.DATA, (0.4,), replace(_SGD, batch_size=16), _RATES),
}
