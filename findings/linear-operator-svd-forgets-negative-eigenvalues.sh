#!/usr/bin/env bash
# linear_operator 0.6.1 (of GPyTorch), torch 2.13.0, Python 3.11
#
# Guess: torch.linalg.svd(operator), and operator.svd(), whose docstring speaks of any M × N matrix, give a decomposition that
# reproduces the operator, as for a tensor; order aside, which it says is none.
# Seen: so it is for positive semidefinite ones alone. Everything else goes through the eigenvalues of a symmetric matrix, of
# which negative ones are set to zero: of a symmetric matrix half of the singular values are 0, a square product of two factors
# of rank 4 gets more than four values, none of them right. A product of two factors that is not square raises, with a message
# about eigh. No warning. Use torch.linalg.svd(operator.to_dense()), or a QR of each factor.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet linear_operator==0.6.1 torch==2.13.0 'numpy>=2,<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error -W ignore::DeprecationWarning - <<'PY'
import importlib.metadata

import torch
from linear_operator import to_linear_operator
from linear_operator.operators import LowRankRootLinearOperator, MatmulLinearOperator

assert importlib.metadata.version("linear_operator") == "0.6.1"
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
square = torch.randn(20, 20)


def seen(name, operator):
    dense = operator.to_dense()
    true = torch.linalg.svdvals(dense)
    left, values, right = torch.linalg.svd(operator)
    right = right.to_dense() if not torch.is_tensor(right) else right
    left = left.to_dense() if not torch.is_tensor(left) else left
    off = min(float(((left * values) @ turned - dense).norm() / dense.norm()) for turned in (right, right.mT))
    values = values.sort(descending=True).values
    print(f"{name}: {int((values > 1e-9).sum())} values above zero, true {int((true > 1e-9).sum())}; the largest "
          f"{[round(float(v), 3) for v in values[:4]]}, true {[round(float(v), 3) for v in true[:4]]}; {off:.0e} off")
    return values, true, off


values, true, off = seen("A Aᵀ of rank 4", LowRankRootLinearOperator(torch.randn(20, 4)))
assert torch.allclose(values[:4], true[:4]) and off < 1e-6
values, true, off = seen("symmetric", to_linear_operator(square + square.mT))
assert (values > 1e-9).sum() < 15 and off > 0.3, "negative eigenvalues are kept now"
values, true, off = seen("a square product of rank 4", MatmulLinearOperator(torch.randn(20, 4), torch.randn(4, 20)))
assert off > 0.3 and not torch.allclose(values[:4], true[:4], rtol=0.05)
try:
    torch.linalg.svd(MatmulLinearOperator(torch.randn(30, 4), torch.randn(4, 20)))
except RuntimeError as error:
    print("30 × 20 product:", error)
else:
    raise AssertionError("products that are not square are decomposed now")
PY
