#!/usr/bin/env bash
# pytorch-optimizer 4.1.0, peft 0.21.2, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: LoRARite divides by a second moment as Adam does, so that a loss that is summed over the samples, or multiplied by any number, trains
# as its mean does; of a PEFT model it takes the parameters that require gradients, as every optimizer does.
# Seen: an update whose gradient has a root mean square above 1 (update_skipping's default), measured before that division, is replaced by
# zeros: with the mean times 1,000 no factor ever moves and the loss stays where it was, with the sum over 256 samples one layer's do
# not; nothing is said. The list of parameters is cut into pairs by position, whatever they are: with lora_bias=True the bias of one layer
# is paired with the first factor of the next, which then stands still, and its second factor with its bias; an odd last one is
# dropped. Take the mean, or update_skipping=0, and give it the factors alone, the rest to another optimizer.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 pytorch-optimizer==4.1.0 'transformers<6' 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import peft
import pytorch_optimizer
import torch
from torch import nn

assert [version(name) for name in ("peft", "pytorch-optimizer")] == ["0.21.2", "4.1.0"] and torch.__version__.startswith("2.13.0")


def trained(optimizer, factor=1.0, reduction="mean", only=None, **adapter):
    """First and last loss for each sample, and the names of what stands still."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 5))
    model = peft.get_peft_model(network, peft.LoraConfig(r=4, target_modules=["0", "2"], **adapter))
    inputs = torch.randn(256, 32)
    labels = (inputs @ torch.randn(32, 5)).argmax(1)
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in named.items()}
    steps = optimizer([weight for name, weight in named.items() if only is None or name.endswith(only)])
    for step in range(200):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels, reduction=reduction)
        (loss * factor).backward()
        steps.step()
        last = loss.item() / (256 if reduction == "sum" else 1)
        first = last if step == 0 else first
    still = [name.removeprefix("base_model.model.").replace(".default", "") for name, weight in named.items() if torch.equal(weight, before[name])]
    return first, last, still


def adam(weights):
    return torch.optim.Adam(weights, lr=1e-2)


def rite(weights):
    return pytorch_optimizer.LoRARite(weights, lr=1e-2)


def unskipped(weights):
    return pytorch_optimizer.LoRARite(weights, lr=1e-2, update_skipping=0.0)


losses = {"mean": {}, "sum": {"reduction": "sum"}, "mean / 1,000": {"factor": 1e-3}, "mean × 1,000": {"factor": 1e3}}
for what, how in losses.items():
    for optimizer in (adam, rite, unskipped):
        first, last, still = trained(optimizer, **how)
        print(f"{what}, {optimizer.__name__}: loss {first:.2f} to {last:.3f}, {len(still)} of 4 tensors stand still")
        if optimizer is rite and what in ("sum", "mean × 1,000"):
            assert still and last > 0.5, "large gradients are taken now"
            assert what == "sum" or len(still) == 4 and last == first
        else:
            assert not still and last < 0.1
for only in (None, ("A.default.weight", "B.default.weight")):
    for optimizer in (adam, rite):
        first, last, still = trained(optimizer, only=only, lora_bias=True)
        given = "all tensors" if only is None else "factors alone"
        print(f"with biases, {given} given, {optimizer.__name__}: loss {first:.2f} to {last:.3f}, still {still}")
        stuck = ["2.lora_A.weight", "2.lora_B.weight", "2.lora_B.bias"] if optimizer is rite else []
        assert still == (stuck if only is None else ["0.lora_B.bias", "2.lora_B.bias"]), "pairs are found in another way now"
PY
