#!/usr/bin/env bash
# statsmodels 0.15.0, numpy 2, Python 3.11
#
# Guess: PCA(x, ncomp=2, missing="fill-em") fills the gaps of a matrix of rank 2 exactly, given enough iterations, for its
# missing entries follow from the others.
# Seen: centring and scaling use the means and deviations of the observed entries, and keep them while gaps are filled, so
# that the true matrix is no fixed point: 3 % error remains at the missing entries after any number of iterations, and
# columns differ from the true ones in their means. standardize=False, demean=False is exact.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet statsmodels==0.15.0 'numpy>=2,<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import statsmodels
from statsmodels.multivariate.pca import PCA

assert statsmodels.__version__ == "0.15.0", statsmodels.__version__
rng = np.random.default_rng(0)
whole = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 12))
missing = rng.random(whole.shape) < 0.2
assert (~missing).sum(0).min() > 10 and (~missing).sum(1).min() > 3
given = np.where(missing, np.nan, whole)


def error(**options):
    filled = PCA(given, ncomp=2, missing="fill-em", tol_em=1e-12, **options).projection
    off = np.linalg.norm((filled - whole)[missing]) / np.linalg.norm(whole[missing])
    print(f"{options}: relative error at the missing entries {off:.2g}")
    return off


few, many = error(max_em_iter=300), error(max_em_iter=3000)
assert few > 0.01 and many > 0.01, "the gaps are filled exactly now"
assert abs(few - many) < 1e-4, "not yet converged"
assert error(max_em_iter=3000, standardize=False) > 0.01
assert error(max_em_iter=3000, standardize=False, demean=False) < 1e-5
PY
