#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: Linear4bit quantises each row of a weight in blocks of 64, the last block of a row being shorter, so that an output's
# precision depends on its own row; a layer's state dict can be loaded into a new layer of the same kind.
# Seen: the weight is flattened first, and blocks run on from row to row. With 8 inputs, as the second factor of a pair of rank 8
# has, eight outputs share a scale: beside rows that are a hundred times larger the small rows become zero, without a word. With
# 64 inputs all rows have 9 % error, once compress_statistics=False: by default the scales share scales in turn, and small rows
# have 32 %. load_state_dict of a new Linear4bit refuses the entries that state_dict gave. Choose ranks that are multiples of 64.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet bitsandbytes==0.50.2 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - 2>"$place/log" <<'PY' || { cat "$place/log"; exit 1; }
import bitsandbytes
import torch
from torch import nn

assert bitsandbytes.__version__ == "0.50.2", bitsandbytes.__version__


def empty(inputs, nested):
    options = {"compute_dtype": torch.float32, "quant_type": "nf4", "compress_statistics": nested}
    return bitsandbytes.nn.Linear4bit(inputs, 48, bias=False, **options)


@torch.no_grad()
def quantised(inputs, large, nested):
    """The relative errors of small and of large outputs, where every other row is ``large`` times the others."""
    torch.manual_seed(0)
    dense, layer, x = nn.Linear(inputs, 48, bias=False), empty(inputs, nested), torch.randn(200, inputs)
    dense.weight[::2] *= large
    layer.load_state_dict(dense.state_dict())
    layer.to("cpu")
    wanted = dense(x)
    off = layer(x) - wanted
    errors = [float(off[:, part].norm() / wanted[:, part].norm()) for part in (slice(1, None, 2), slice(0, None, 2))]
    print(f"{inputs} inputs, every other row {large} times the others, scales compressed {nested}: errors of the small rows "
          f"{errors[0]:.2f}, of the others {errors[1]:.2f}")
    return layer, errors


for inputs, large, nested, small_ones in (
    (8, 1, False, 0.1), (8, 100, False, 1.0), (32, 100, False, 1.0), (64, 100, False, 0.1), (64, 100, True, 0.32)
):
    layer, errors = quantised(inputs, large, nested)
    assert abs(errors[0] - small_ones) < 0.05 and errors[1] < 0.15, "blocks end with the row now"
try:
    empty(64, True).load_state_dict(layer.state_dict())
except RuntimeError as error:
    print("loaded again:", str(error).splitlines()[1].strip()[:80])
else:
    raise AssertionError("a state dict can be loaded now")
PY
