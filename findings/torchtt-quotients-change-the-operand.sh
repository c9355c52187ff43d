#!/usr/bin/env bash
# torchtt 0.5.0 (tensor trains), torch 2.13.0, Python 3.11
#
# Guess: arithmetic on a tensor train gives a new one and leaves the operands, as the torch tensors that they stand for do; pad(train,
# padding, value=2.0) writes 2.0 around it, and sum(-1) sums over the last mode or is refused.
# Seen: train / 4 divides the train itself too: quotient and operand share their first core, so that a second division gives a
# sixteenth. Matrices (TTM) alike; products, sums and differences leave the operands. pad writes the value only where all modes are
# padded at once, and numbers that depend on the cores along the sides; value=0 is right. sum(-1) returns the whole train, unsummed. No error,
# no warning; a train that requires gradients refuses the division. Multiply by the reciprocal, and count modes from the front.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 torchtt==0.5.0 'numpy<3' 'scipy<2' opt_einsum
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
import torchtt

assert version("torchtt") == "0.5.0" and torch.__version__.startswith("2.13.0")
torch.manual_seed(0)
dense = torch.randn(5, 6, 7, dtype=torch.float64)
square = torch.randn(4, 5, 3, 2, dtype=torch.float64)


def off(train, true):
    return float((train.full() - true).norm() / true.norm())


for what, true, make in (("train", dense, lambda: torchtt.TT(dense)), ("matrix", square, lambda: torchtt.TT(square, [(4, 3), (5, 2)]))):
    for name, operation in (("t / 4", lambda t: t / 4), ("t * 0.25", lambda t: t * 0.25), ("t + 1", lambda t: t + 1), ("t - t", lambda t: t - t)):
        train = make()
        assert off(train, true) < 1e-12
        result, wanted = operation(train), operation(true)
        wrong = float((result.full() - wanted).norm())
        print(f"{what}, {name}: the result is {wrong:.0e} off, the operand {off(train, true):.0e}")
        assert wrong < 1e-10
        assert (abs(off(train, true) - 0.75) < 1e-6) == (name == "t / 4"), "operands are left alone now"
    train = make()
    twice = [train / 4, train / 4][1]
    assert off(twice, true / 16) < 1e-10

train = torchtt.TT(dense)
for value in (0.0, 2.0):
    padded = torchtt.pad(train, ((1, 0), (0, 2), (0, 0)), value=value).full()
    wanted = torch.nn.functional.pad(dense, (0, 0, 0, 2, 1, 0), value=value)
    inside = float((padded[1:, :6] - dense).abs().max())
    print(f"padded with {value}: {inside:.0e} off inside, up to {(padded - wanted).abs().max():.1f} off along the sides")
    assert inside < 1e-10
    assert ((padded - wanted).abs().max() > 0.5) == (value != 0), "the padding has its value now"

padded = torchtt.pad(train, ((1, 0), (1, 0), (1, 0)), value=2.0).full()
print(f"padded in all modes with 2.0: the corner is {padded[0, 0, 0]:.3f}, its neighbour {padded[0, 0, 1]:.3f}")
assert abs(padded[0, 0, 0] - 2) < 1e-10 < abs(padded[0, 0, 1] - 2)

for mode in (2, -1):
    shape = tuple(torchtt.TT(dense).sum(mode).full().shape)
    print(f"sum({mode}) of {tuple(dense.shape)} has the shape {shape}")
    assert shape == ((5, 6) if mode == 2 else (5, 6, 7)), "negative modes are read now"
PY
