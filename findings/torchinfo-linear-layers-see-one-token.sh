#!/usr/bin/env bash
# torchinfo 1.8.0, torch 2.13.0, Python 3.11
#
# Guess: total_mult_adds of torchinfo.summary grows with the length of a sequence, as that of a convolution grows with the image, so
# that a dense and a factored transformer can be compared with it; looking rows up in a table costs nothing.
# Seen: a linear layer counts its weights once for each sample, however many tokens a sample has, and so does an embedding, all of its
# rows. Sequences of 5 and of 500 tokens cost the same; a pointwise convolution, which computes the same thing, costs 500 times as
# much. In a network of both kinds the linear layers, and what factoring saves in them, nearly vanish. Nothing is said.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torchinfo==1.8.0 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
import torchinfo
from torch import nn

assert torchinfo.__version__ == "1.8.0", torchinfo.__version__


def seen(name, layer, x):
    count = torchinfo.summary(layer, input_data=x, verbose=0).total_mult_adds
    print(f"{name}, input {tuple(x.shape)}: {count:,} multiply-adds")
    return count


linear, pointwise = nn.Linear(16, 8, bias=False), nn.Conv1d(16, 8, 1, bias=False)
for tokens in (1, 5, 500):
    assert seen("linear", linear, torch.randn(2, tokens, 16)) == 2 * 16 * 8, "tokens count now"
    assert seen("pointwise convolution", pointwise, torch.randn(2, 16, tokens)) == 2 * tokens * 16 * 8
    assert seen("embedding", nn.Embedding(1000, 16), torch.zeros(2, tokens, dtype=torch.long)) == 2 * 1000 * 16
PY
