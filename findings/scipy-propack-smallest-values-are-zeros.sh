#!/usr/bin/env bash
# scipy 1.17.1 (numpy 2), Python 3.11
#
# Guess: svds(..., which="SM") gives the smallest singular values with each of its three solvers, or an error where a solver
# does not converge.
# Seen: solver="propack" returns zeros, without an error or a warning, for a matrix whose least singular value is 1; its
# vectors are of unit length and belong to no singular value. With maxiter above the width a tall matrix gets one zero that
# is none of its values, in the place of the largest wanted one. "arpack" gives the right ones.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet scipy==1.17.1 'numpy>=2,<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W error - <<'PY'
import numpy as np
import scipy
from scipy.sparse.linalg import svds

assert scipy.__version__ == "1.17.1", scipy.__version__
a = np.vstack([np.diag(np.arange(1.0, 51.0)), np.zeros((30, 50))])


def smallest(solver, **options):
    u, values, v = svds(a, k=3, which="SM", solver=solver, rng=np.random.default_rng(0), **options)
    off = np.linalg.norm(a @ v.T - u * values, axis=0)
    lengths = np.linalg.norm(v, axis=1)
    print(f"{solver} {options}: {np.round(values, 6)}, residuals {np.round(off, 6)}, lengths of the vectors {np.round(lengths, 6)}")
    return values, off, lengths


values, off, _ = smallest("arpack")
assert np.allclose(sorted(values), [1, 2, 3]) and off.max() < 1e-6
values, off, lengths = smallest("propack")
assert np.abs(values).max() < 1e-9 and off.max() > 1 and np.allclose(lengths, 1), "no longer zeros"
values, _, _ = smallest("propack", maxiter=100)
assert np.allclose(sorted(values), [0, 1, 2], atol=1e-6), "no longer one zero too many"
PY
