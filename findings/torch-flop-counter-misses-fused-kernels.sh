#!/usr/bin/env bash
# torch 2.13.0, Python 3.11, on a CPU
#
# Guess: torch.utils.flop_counter.FlopCounterMode counts an LSTM and a transformer's layer in full, with and without gradients,
# as it counts a GRU; what it cannot count it names.
# Seen: an LSTM has 0 FLOPs, for the fused kernel that runs it has no formula; factored into two linear layers for each gate it
# would have more. A TransformerEncoderLayer in eval mode has 0 without gradients (one fused operation); with gradients its
# four projections and two layers are counted, the products of attention are not. A product of a matrix and a vector is 0.
# Nothing is said. GRU and RNN are right.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error - <<'PY'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

assert torch.__version__.startswith("2.13.0"), torch.__version__
batch, length, width, hidden = 2, 5, 8, 16
sequence = torch.randn(batch, length, width)
gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
rows = batch * length


def counted(function, gradients):
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


for kind, number in gates.items():
    network, wanted = kind(width, hidden, batch_first=True).eval(), 2 * rows * number * hidden * (width + hidden)
    seen = [counted(lambda: network(sequence), gradients) for gradients in (False, True)]
    print(f"{kind.__name__}: {wanted} by hand, counted without gradients {seen[0]}, with {seen[1]}")
    assert seen == ([0, 0] if kind is nn.LSTM else [wanted, wanted])

layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).eval()
linear, attention = 2 * rows * (4 * width * width + 2 * width * hidden), 2 * 2 * batch * length * length * width
seen = [counted(lambda: layer(sequence), gradients) for gradients in (False, True)]
print(f"TransformerEncoderLayer: {linear} in linear layers and {attention} in attention; counted {seen[0]}, with gradients {seen[1]}")
assert seen == [0, linear], "attention, or the fused layer, is counted now"

matrix = torch.randn(32, 16)
vector = counted(lambda: matrix @ torch.randn(16), False), counted(lambda: matrix @ torch.randn(16, 1), False)
print(f"32 × 16 times a vector: {vector[0]}, times a matrix of one column: {vector[1]}")
assert vector == (0, 2 * 32 * 16)
PY
