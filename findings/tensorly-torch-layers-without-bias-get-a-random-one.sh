#!/usr/bin/env bash
# tensorly-torch 0.5.0, tensorly 0.10.0, torch 2.13.0, Python 3.11
#
# Guess: at full rank FactorizedLinear.from_linear(layer), FactorizedConv.from_conv and FactorizedEmbedding.from_embedding compute what
# the layer does, or refuse it, and leave the layer as it is.
# Seen: a linear layer without bias gets one, at random; pass bias=False for it. One with a bias, and a convolution, share its memory:
# training the new layer changes the old one, so that a comparison of the two, or a teacher, moves along. A convolution with strides
# (1, 2) has (1, 1). padding_idx and max_norm of an embedding are forgotten: the padding row learns, long rows are not cut. Nothing is
# said. Copy the layer before, and compare outputs at full rank.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly-torch==0.5.0 tensorly==0.10.0 torch==2.13.0 packaging==26.4 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import tensorly
import torch
from torch import nn

tensorly.set_backend("pytorch")
import tltorch  # noqa: E402

assert importlib.metadata.version("tensorly-torch") == "0.5.0"
torch.manual_seed(0)


def apart(found, wanted):
    return float((found - wanted).detach().norm() / wanted.detach().norm())


x = torch.randn(50, 64)
for bias, asked in ((True, {}), (False, {}), (False, {"bias": False})):
    layer = nn.Linear(64, 64, bias=bias)
    made = tltorch.FactorizedLinear.from_linear(layer, factorization="blocktt", rank=64, **asked)
    weights, off = apart(made.weight.to_matrix(), layer.weight), apart(made(x), layer(x))
    print(f"linear, bias={bias}, {asked or 'as it is'}: weight {weights:.0e} off, outputs {off:.1e}")
    assert weights < 1e-4
    assert (off > 0.05) == (not bias and not asked), "a layer without bias stays without now"

conv, image = nn.Conv2d(8, 12, 3), torch.randn(2, 8, 9, 9)
pairs = {"linear": (layer := nn.Linear(64, 64), tltorch.FactorizedLinear.from_linear(layer, factorization="blocktt", rank=64), x),
         "convolution": (conv, tltorch.FactorizedConv.from_conv(conv, rank=(12, 8, 3, 3), factorization="tucker"), image)}
for name, (layer, made, given) in pairs.items():
    before = layer(given).detach()
    made(given).square().sum().backward()
    torch.optim.SGD(made.parameters(), lr=1e-3).step()
    moved = apart(layer(given), before)
    print(f"{name}: one step of training the new layer moves the old one's outputs by {moved:.1e}")
    assert moved > 1e-3, "the bias is a copy now"

for strides in (2, (1, 2)):
    conv = nn.Conv2d(8, 12, 3, stride=strides)
    made = tltorch.FactorizedConv.from_conv(conv, rank=(12, 8, 3, 3), factorization="tucker")
    found, wanted = made(image), conv(image)
    print(f"convolution, stride {strides}: {tuple(found.shape)} for {tuple(wanted.shape)}")
    assert (found.shape == wanted.shape) == (strides == 2), "all strides are kept now"

ids = torch.arange(8)
for options in ({}, {"padding_idx": 0}, {"max_norm": 1.0}):
    table = nn.Embedding(64, 64, **options)
    made = tltorch.FactorizedEmbedding.from_embedding(table, factorization="blocktt", rank=64)
    off = apart(made(ids), table(ids))
    made(torch.zeros(4, dtype=torch.long)).sum().backward()
    learns = any(part.grad is not None and bool(part.grad.abs().max() > 0) for part in made.parameters())
    print(f"embedding, {options or 'plain'}: {off:.1e} off, row 0 learns: {learns}")
    assert (off > 1) == ("max_norm" in options) and learns, "the settings are kept now"
PY
