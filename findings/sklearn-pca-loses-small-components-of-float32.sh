#!/usr/bin/env bash
# scikit-learn 1.9.1, numpy 2, Python 3.11
#
# Guess: PCA() of a float32 matrix gives singular values that are right down to about 1e-6 of the largest, as numpy's singular
# value decomposition of it does; which solver it takes is a matter of speed.
# Seen: with ten times as many rows as columns or more (and at most 1,000 columns) the default is the eigenvalues of XᵀX, whose
# rounding is that of the squares: below about 3e-4 of the largest value they are noise, here up to 16 times too large, or zero.
# Ranks and dimensions that are read off such spectra of activations are those of rounding. svd_solver="full", or float64, is right.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet scikit-learn==1.9.1 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W error - <<'PY'
import numpy as np
import sklearn
from sklearn.decomposition import PCA

assert sklearn.__version__ == "1.9.1", sklearn.__version__
rng = np.random.default_rng(0)
rows, columns = 1000, 16
left = rng.standard_normal((rows, columns))
left = np.linalg.qr(left - left.mean(0))[0]
right = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
true = 10.0 ** (-np.arange(columns) / 2)  # 1 to 3e-8
data = ((left * true) @ right).astype(np.float32)
inside = true > 2e-6


def times(values):
    """The found values as multiples of the true ones, where float32 can hold them."""
    return np.round(values / true, 2)[inside]


def found(given, **options):
    model = PCA(**options).fit(given)
    print(f"{given.dtype}, {options}, {len(given)} rows: true values times", times(model.singular_values_).tolist())
    return times(model.singular_values_)


by_numpy = times(np.linalg.svd(data - data.mean(0), compute_uv=False))
print("numpy, float32: true values times", by_numpy.tolist())
assert np.abs(by_numpy - 1).max() < 0.1
seen = found(data)
assert np.abs(seen[true[inside] > 2e-3] - 1).max() < 0.1 and np.abs(seen - 1).max() > 2, "small values are right now"
assert np.abs(found(data, svd_solver="full") - 1).max() < 0.1
assert np.abs(found(data.astype(np.float64)) - 1).max() < 0.1
PY
