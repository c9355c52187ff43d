#!/usr/bin/env bash
# backpack-for-pytorch 1.7.1, curvlinops-for-pytorch 3.0.1, nngeometry 0.4, torch 2.13.0, Python 3.11
#
# Guess: libraries that compute gradients of each sample or curvature from a layer's inputs read the same inputs as the layer does:
# with padding_mode="reflect", "circular" or "replicate" those of the padded image; or they refuse such layers, as they do others.
# Seen: all three unfold the image with zeros around it. BackPACK's gradients of the samples no longer sum to the gradient (off by more
# than half of it) and its exact diagonal is wrong; curvlinops' EKFAC, whose trace is exact for one sample, loses a quarter of it;
# nngeometry's dense Fisher matrix, exact otherwise, is off by 40 %. No error, no warning; padding_mode="zeros" is exact.
# Pad with a layer of its own (nn.ReflectionPad2d) before a convolution without padding, which curvlinops and nngeometry read right.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'linear_operator<1' 'opt_einsum<4' 'einops<1' 'packaging<27' 'tqdm<5' 'numpy<3' 'scipy<2'
# without torchvision, which they ask for and do not need here
"$place/venv/bin/pip" install --quiet --no-deps backpack-for-pytorch==1.7.1 unfoldNd==0.2.3 curvlinops-for-pytorch==3.0.1 \
  einconv==0.1.0 nngeometry==0.4
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, DiagGGNExact
from curvlinops import EKFACLinearOperator, FisherType, GGNLinearOperator
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

for name, number in (("backpack-for-pytorch", "1.7.1"), ("curvlinops-for-pytorch", "3.0.1"), ("nngeometry", "0.4")):
    assert version(name) == number, (name, version(name))
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
images, labels = torch.randn(4, 4, 5, 5), torch.tensor([0, 2, 1, 2])


def network(mode, apart=False):
    first = [nn.ReflectionPad2d(1), nn.Conv2d(4, 2, 3)] if apart else [nn.Conv2d(4, 2, 3, padding=1, padding_mode=mode)]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(50, 3))


def curvature(model, x, y):
    """The Gauss-Newton matrix, by products alone: no layer's inputs are read."""
    operator = GGNLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    return operator @ torch.eye(operator.shape[1])


def by_backpack(model):
    true = curvature(model, images, labels).diag()
    model, loss = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss())
    with backpack(BatchGrad(), DiagGGNExact()):
        loss(model(images), labels).backward()
    weight = model[0].weight
    true = true[: weight.numel()]
    return (float((weight.grad_batch.sum(0) - weight.grad).abs().max() / weight.grad.abs().max()),
            float((weight.diag_ggn_exact.flatten() - true).norm() / true.norm()))


def by_curvlinops(model):
    x, y = images[:1], labels[:1]
    given = (model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    operator = EKFACLinearOperator(*given, fisher_type=FisherType.TYPE2)
    weight = next(p for p in model.parameters()).numel()
    dense = operator @ torch.eye(operator.shape[1])
    return float(1 - dense.diag()[:weight].sum() / curvature(model, x, y).diag()[:weight].sum())


def by_nngeometry(model):
    seen = FIM(model=model, loader=DataLoader(TensorDataset(images), batch_size=2), representation=PMatDense,
               variant="classif_logits", function=lambda *batch: model(batch[0])).to_torch()
    true = curvature(model, images, labels)
    return float((seen - true).norm() / true.norm())


for mode in ("zeros", "reflect", "circular", "replicate"):
    sums, diagonal = by_backpack(network(mode))
    trace, fisher = by_curvlinops(network(mode)), by_nngeometry(network(mode))
    print(f"{mode}: BackPACK's sum of gradients off by {sums:.1%}, its diagonal by {diagonal:.1%}; curvlinops' EKFAC misses {trace:.1%} "
          f"of the trace; nngeometry's Fisher matrix is off by {fisher:.1%}")
    found = [sums, diagonal, abs(trace), fisher]
    assert max(found) < 1e-9 if mode == "zeros" else min(found) > 0.03, f"the padding is read now: {found}"
apart = network("zeros", apart=True)
trace, fisher = by_curvlinops(apart), by_nngeometry(apart)
print(f"reflection by a layer of its own: {abs(trace):.0e} and {fisher:.0e}")
assert max(abs(trace), fisher) < 1e-9
PY
