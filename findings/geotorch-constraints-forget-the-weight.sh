#!/usr/bin/env bash
# geotorch 0.4.0, torch 2.13.0, Python 3.11
#
# Guess: geotorch.low_rank(layer, "weight", r) on a trained layer starts from the best approximation of its weight at rank r
# (or refuses a weight of higher rank), trains about r (m + n) numbers, and takes a convolution's kernel as a matrix of m
# rows.
# Seen: the weight is replaced by a random one, whose distance from the trained weight is above that of zeros; so do
# fixed_rank and orthogonal. Assign the approximation afterwards (layer.weight = W), which is kept exactly. As many numbers
# are trained as the dense layer has, whatever the rank. A kernel of m × n × 3 × 3 is mn matrices of 3 × 3, of rank at most 3.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet geotorch==0.4.0 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import geotorch
import torch
from torch import nn

assert importlib.metadata.version("geotorch") == "0.4.0"
torch.manual_seed(0)
left, values, right = torch.linalg.svd(torch.randn(48, 32), full_matrices=False)
values = 0.7 ** torch.arange(32.0)
trained, best = (left * values) @ right, (left[:, :4] * values[:4]) @ right[:4]


def apart(layer, wanted):
    return float((layer.weight - wanted).norm() / wanted.norm())


for constraint, options in ((geotorch.low_rank, (4,)), (geotorch.fixed_rank, (4,)), (geotorch.orthogonal, ())):
    layer = nn.Linear(32, 48, bias=False)
    with torch.no_grad():
        layer.weight.copy_(trained)
    constraint(layer, "weight", *options)
    seen, numbers = apart(layer, trained), sum(parameter.numel() for parameter in layer.parameters())
    wanted = best if options else left @ right
    layer.weight = wanted
    print(f"{constraint.__name__}: {seen:.2f} of its norm from the trained weight (best possible at rank 4 "
          f"{float((best - trained).norm() / trained.norm()):.2f}), {apart(layer, wanted):.0e} from what is assigned; "
          f"{numbers} numbers trained, the dense layer has {trained.numel()}")
    assert seen > 1, "the weight is kept now"
    assert apart(layer, wanted) < 1e-4
    assert numbers == trained.numel()

kernel = nn.Conv2d(8, 16, 3)
geotorch.low_rank(kernel, "weight", 3)
try:
    geotorch.low_rank(nn.Conv2d(8, 16, 3), "weight", 4)
except ValueError as error:
    print("kernel of 16 × 8 × 3 × 3 at rank 4:", error)
else:
    raise AssertionError("a kernel may have a rank above 3 now")
PY
