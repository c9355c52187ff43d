#!/usr/bin/env bash
# backpack-for-pytorch 1.7.1, curvlinops-for-pytorch 3.0.1, laplace-torch 0.3, torch 2.13.0, Python 3.11
#
# Guess: KFLR (KFAC without sampling) gives factors whose Kronecker product has about the size of the layer's true curvature, for
# convolutions as for linear layers, for an image of one pixel as for a large one.
# Seen: for the weights of a convolution the product is too large by about the number of output positions, since inputs are summed
# over positions and so are gradients: of a 1 x 1 kernel over a flat image it is the true matrix times exactly that number. Biases and
# linear layers are right. A remark in the source says so, the documentation does not. The curvature of convolutions thus outweighs
# that of the layers behind them, and grows with the image: with laplace-torch, backend=BackPackGGN makes the scale of the Kronecker
# form many times that of the exact diagonal, CurvlinopsGGN keeps it. Divide the weight's factors by the number of positions.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'linear_operator<1' 'opt_einsum<4' 'einops<1' 'packaging<27' 'tqdm<5' 'numpy<3' 'scipy<2' \
  torchmetrics==1.9.0
# without torchvision, which they ask for and do not need here
"$place/venv/bin/pip" install --quiet --no-deps backpack-for-pytorch==1.7.1 unfoldNd==0.2.3 curvlinops-for-pytorch==3.0.1 \
  einconv==0.1.0 laplace-torch==0.3 asdfghjkl==0.1a4
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import KFLR, DiagGGNExact
from laplace import Laplace
from laplace.curvature import BackPackGGN, CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

for name, number in (("backpack-for-pytorch", "1.7.1"), ("curvlinops-for-pytorch", "3.0.1"), ("laplace-torch", "0.3")):
    assert version(name) == number, (name, version(name))
torch.set_default_dtype(torch.float64)


def times(model, x, y):
    """For each parameter the trace of the Kronecker product as a multiple of that of the true curvature."""
    model, loss = extend(copy.deepcopy(model)), extend(nn.MSELoss())
    with backpack(KFLR(), DiagGGNExact()):
        loss(model(x), y).backward()
    products = {name: torch.stack([factor.trace() for factor in p.kflr]).prod() for name, p in model.named_parameters()}
    return {name: float(products[name] / p.diag_ggn_exact.sum()) for name, p in model.named_parameters()}


for side in (1, 2, 4, 8):
    torch.manual_seed(0)
    flat = torch.randn(1, 2, 1, 1).expand(1, 2, side, side).contiguous()
    one = times(nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3 * side**2, 10)), flat, torch.randn(1, 10))
    images, answers = torch.randn(20, 2, side, side), torch.randn(20, 10)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * side**2, 10))
    many = times(model, images, answers)
    traces = {}
    for backend in (BackPackGGN, CurvlinopsGGN):
        for form in ("kron", "diag"):
            laplace = Laplace(copy.deepcopy(model), "regression", "all", form, backend=backend)
            laplace.fit(DataLoader(TensorDataset(images, answers), batch_size=20))
            traces[backend.__name__, form] = float(laplace.H.to_matrix().trace() if form == "kron" else laplace.H.sum())
    ratio = {name: traces[name, "kron"] / traces[name, "diag"] for name in ("BackPackGGN", "CurvlinopsGGN")}
    print(f"{side} x {side}: weights of a convolution get {one['0.weight']:.4f} times the curvature (flat image, 1 x 1 kernel), "
          f"{many['0.weight']:.2f} times (noise, 3 x 3), its bias {many['0.bias']:.2f}, linear weights {many['2.weight']:.2f}; "
          f"laplace-torch, Kronecker form over exact trace: BackPackGGN {ratio['BackPackGGN']:.2f}, CurvlinopsGGN "
          f"{ratio['CurvlinopsGGN']:.2f}")
    assert abs(one["0.weight"] - side**2) < 1e-6, "flat images get the true curvature now"
    assert side == 1 or many["0.weight"] > side**2 / 2
    assert all(abs(many[name] - 1) < 1e-6 for name in ("0.bias", "2.weight", "2.bias"))
    assert abs(ratio["CurvlinopsGGN"] - 1) < 0.1 and (side == 1 or ratio["BackPackGGN"] > 2)
PY
