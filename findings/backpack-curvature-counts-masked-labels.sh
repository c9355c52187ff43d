#!/usr/bin/env bash
# backpack-for-pytorch 1.7.1, torch 2.13.0, Python 3.11
#
# Guess: what BackPACK does not support it refuses, as it does class weights, an ignore_index of one's own and BatchNorm in training;
# labels of -100, which CrossEntropyLoss leaves out by default, are left out of the curvature as of the gradient.
# Seen: a gradient with masked labels is right, and DiagGGNExact, KFLR and the like count them as samples, with the loss's mean over all:
# off by a fifth with one of four masked. Of a grouped convolution BatchGrad is right and BatchL2Grad, the norms that
# privacy and pruning use, is not. Of two layers that share a weight only the one nearest to the output counts, in every quantity. No
# error, no warning in any of these. Drop masked samples first; take norms from BatchGrad.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'einops<1' 'packaging<27' 'numpy<3'
"$place/venv/bin/pip" install --quiet --no-deps backpack-for-pytorch==1.7.1 unfoldNd==0.2.3  # without torchvision, not needed here
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad, DiagGGNExact
from torch import nn

assert version("backpack-for-pytorch") == "1.7.1", version("backpack-for-pytorch")
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def worked(model, x, y, *extensions):
    model, loss = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss())
    with backpack(*extensions):
        loss(model(x), y).backward()
    return model


def off(seen, true):
    return float((seen - true).abs().max() / true.abs().max())


linear, x, y = nn.Sequential(nn.Linear(4, 3)), torch.randn(4, 4), torch.tensor([0, 2, 1, 1])
masked = torch.tensor([0, 2, -100, 1])
kept = masked >= 0
for name, labels in (("no label masked", y), ("one of four masked", masked)):
    seen = worked(linear, x, labels, DiagGGNExact())[0].weight
    true = worked(linear, x[labels >= 0], labels[labels >= 0], DiagGGNExact())[0].weight
    print(f"{name}: the gradient is {off(seen.grad, true.grad):.0e} off that of the other samples alone, the diagonal "
          f"{off(seen.diag_ggn_exact, true.diag_ggn_exact):.0e}")
    assert off(seen.grad, true.grad) < 1e-12
    assert (off(seen.diag_ggn_exact, true.diag_ggn_exact) > 0.05) == (name != "no label masked"), "masked labels are left out now"

for groups in (1, 2):
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=groups), nn.Flatten(), nn.Linear(16, 3))
    seen = worked(network, torch.randn(4, 4, 4, 4), y, BatchGrad(), BatchL2Grad())[0].weight
    sums, norms = off(seen.grad_batch.sum(0), seen.grad), off(seen.batch_l2, seen.grad_batch.flatten(1).square().sum(1))
    print(f"a convolution of {groups} groups: the samples' gradients sum up to {sums:.0e}, their norms are {norms:.0e} off")
    assert sums < 1e-12 and (norms > 0.05) == (groups == 2), "norms of groups are right now"

tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
for shared in (False, True):
    if shared:
        tied[2].weight = tied[0].weight
    seen = worked(tied, x, y, BatchGrad())[0].weight
    print(f"two layers, {'one' if shared else 'each its own'} weight: the samples' gradients miss {off(seen.grad_batch.sum(0), seen.grad):.0%}")
    assert (off(seen.grad_batch.sum(0), seen.grad) > 0.05) == shared, "shared weights are right now"
PY
