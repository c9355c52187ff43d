#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: HRAConfig(apply_GS=True), which makes the reflections orthogonal to each other, starts as the base model does, as
# apply_GS=False does and as init_weights=True promises.
# Seen: HRA starts as the base because its reflections come in equal pairs, each undoing its partner. Gram-Schmidt takes from the
# second of a pair all that it shares with the first: what is left is rounding, made a unit vector. A fresh adapter moves the
# outputs by most of their size, in a direction of rounding's own. No error, no warning. Leave apply_GS off.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import peft
import torch
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


@torch.no_grad()
def seen(rank, gram_schmidt):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)), torch.randn(50, 32)
    plain = network(x)
    config = peft.HRAConfig(target_modules=["0"], r=rank, apply_GS=gram_schmidt, init_weights=True)
    off = float((peft.get_peft_model(network, config)(x) - plain).norm() / plain.norm())
    print(f"r={rank}, apply_GS={gram_schmidt}: a fresh adapter moves the outputs by {off:.1e}")
    return off


for rank in (2, 4, 8):
    assert seen(rank, False) < 1e-5
    assert seen(rank, True) > 0.1, "it starts at the base now"
PY
