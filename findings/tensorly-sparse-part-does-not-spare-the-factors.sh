#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, Python 3.11
#
# Guess: parafac(sparsity=k) fits a sum of a low-rank and a sparse tensor, "we approximate tensor as a sum": with k outliers in an
# exactly low-rank tensor the factors are those of the tensor without them, or near.
# Seen: the factors are those of plain parafac, outliers and all: the least-squares steps never see the sparse part, which is cut from
# what is left after them. Only the error that is reported (and decides when to stop) takes it into account: 10 outliers among 1,728
# entries leave the low-rank part 7 % off, where taking the sparse part out by turns gives the exact tensor, to rounding. Do that by hand:
# fit tensor - sparse, cut sparse anew, and again.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from tensorly.decomposition import parafac

assert tensorly.__version__ == "0.10.0", tensorly.__version__
rng = np.random.default_rng(0)
clean = tensorly.cp_to_tensor((None, [rng.standard_normal((12, 2)) for _ in range(3)]))
spoilt = clean.copy()
spoilt.flat[rng.choice(clean.size, 10, replace=False)] += 5.0


def off(seen):
    return float(np.linalg.norm(seen - clean) / np.linalg.norm(clean))


options = {"n_iter_max": 500, "tol": 1e-12, "random_state": 0}
beside = tensorly.cp_to_tensor(parafac(spoilt, 2, sparsity=10, **options)[0])
plain = tensorly.cp_to_tensor(parafac(spoilt, 2, **options))
print(f"low-rank part with sparsity=10: {off(beside):.1%} off the tensor without outliers; that of plain parafac: {off(plain):.1%}; "
      f"apart by {np.linalg.norm(beside - plain) / np.linalg.norm(plain):.0e}")
assert np.linalg.norm(beside - plain) < 1e-4 * np.linalg.norm(plain) and off(beside) > 0.05, "factors are spared now"

sparse = np.zeros_like(spoilt)
for _ in range(30):
    low = tensorly.cp_to_tensor(parafac(spoilt - sparse, 2, n_iter_max=30, tol=0, random_state=0))
    rest = np.abs(spoilt - low)
    sparse = np.where(rest >= np.sort(rest, axis=None)[-10], spoilt - low, 0)
print(f"by turns, 30 times: {off(low):.0e} off")
assert off(low) < 1e-6
PY
