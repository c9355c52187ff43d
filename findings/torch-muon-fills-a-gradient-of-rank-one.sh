#!/usr/bin/env bash
# torch 2.13.0, Python 3.11
#
# Guess: torch.optim.Muon makes the singular values of its update nearly equal, those that are not zero: the first step of a
# gradient of rank 1 or 2 (one sample, or one token) has the same rank, up to rounding.
# Seen: its Newton-Schulz steps always run in bfloat16, for float32 and float64 parameters too, and multiply small singular
# values by over 400, rounding among them: of the update of a rank-1 gradient of 256 × 256, 70 % of the squared norm lie
# outside of that rank, in directions that no sample asked for. The same steps in float32 keep the rank.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__


def outside(update, rank):
    values = torch.linalg.svdvals(update.double())
    return float(values[rank:].square().sum() / values.square().sum()), int((values > values[0] / 10).sum())


def by_hand(gradient, a=3.4445, b=-4.775, c=2.0315):
    """Muon's five steps in the gradient's own precision."""
    x = gradient / gradient.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


for rank in (1, 2):
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        gradient = (torch.randn(256, rank) @ torch.randn(rank, 256)).to(dtype)
        weight = torch.nn.Parameter(torch.zeros(256, 256, dtype=dtype))
        weight.grad = gradient
        torch.optim.Muon([weight], lr=1.0).step()
        share, large = outside(weight.detach(), rank)
        exact, few = outside(by_hand(gradient), rank)
        print(f"rank {rank}, {dtype}: outside of the rank {share:.2f} of the update's square, {large} singular values above a "
              f"tenth of the largest; by hand {exact:.1e} and {few}")
        assert share > 0.25 and large > 20, "the rank is kept now"
        assert exact < 1e-4 and few == rank
PY
