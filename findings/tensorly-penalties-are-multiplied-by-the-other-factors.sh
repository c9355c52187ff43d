#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, scikit-learn 1.9.1, Python 3.11
#
# Guess: constrained_parafac(l1_reg=c) with the other modes fixed is the lasso with c, "using the input value as regularization
# parameter", as l2_square_reg=c is the ridge.
# Seen: the proximal step takes c as it stands where ADMM's step size belongs beside it: the penalty is c times the mean squared norm
# of the columns of the other factors' Khatri-Rao product, a number that grows with the sizes of the modes and with the factors and
# changes with every step where they are free. With that multiple lasso and ridge agree to rounding; with c as given they are up to
# 80 % off. Divide c by it.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2' scikit-learn==1.9.1
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from sklearn.linear_model import Lasso
from tensorly.decomposition import constrained_parafac
from tensorly.tenalg import khatri_rao

assert tensorly.__version__ == "0.10.0", tensorly.__version__


def solved(scale, penalty, name):
    rng = np.random.default_rng(0)
    factors = [scale * rng.standard_normal((5, 2)), rng.standard_normal((6, 2)), rng.standard_normal((7, 2))]
    tensor = tensorly.cp_to_tensor((None, factors)) + scale * 0.1 * rng.standard_normal((5, 6, 7))
    found = constrained_parafac(tensor, 2, init=(None, [f.copy() for f in factors]), fixed_modes=[0, 1], n_iter_max=300,
                                n_iter_max_inner=50, tol_outer=0, tol_inner=1e-12, **{name: {2: penalty}})[1][2]
    left, right = khatri_rao(factors[:2]), tensorly.unfold(tensor, 2).T
    multiple = float(np.trace(left.T @ left) / 2)

    def true(c):
        if name == "l1_reg":
            return Lasso(alpha=c / len(left), fit_intercept=False, tol=1e-12, max_iter=10**5).fit(left, right).coef_
        return np.linalg.solve(left.T @ left + 2 * c * np.eye(2), left.T @ right).T

    off = [float(np.linalg.norm(found - true(c)) / np.linalg.norm(true(c))) for c in (penalty, penalty * multiple)]
    print(f"{name}={penalty}, fixed factors times {scale}: {off[0]:.0%} off the optimum for {penalty}, {off[1]:.0e} off that for "
          f"{multiple:.0f} x {penalty}")
    return off


for name in ("l1_reg", "l2_square_reg"):
    for scale in (1.0, 10.0):
        for penalty in (0.1, 1.0):
            as_given, multiplied = solved(scale, penalty, name)
            assert as_given > 0.05, "the penalty counts as it is given now"
            assert multiplied < 1e-6
PY
