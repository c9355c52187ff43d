#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, Python 3.11
#
# Guess: constrained_parafac(init=(weights, factors)) starts from the tensor that these are, as parafac does, where weights go into the
# last factor; fixed modes keep what they were given.
# Seen: each factor is multiplied with one number, the product of all weights to the power of one over the rank: weights 3 and .5 start
# from another tensor, weights 10 and 10 from one that is 100 times as large, and fixed modes are multiplied too, so that they are not
# those given. One negative weight of two makes all NaN, with a RuntimeWarning. What parafac(normalize_factors=True)
# returns is such a start. Multiply the weights into the last factor yourself.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from tensorly.decomposition import constrained_parafac, parafac

assert tensorly.__version__ == "0.10.0", tensorly.__version__
rng = np.random.default_rng(0)
factors = [rng.random((size, 2)) + 0.1 for size in (5, 6, 7)]


def relative(seen, true):
    return float(np.linalg.norm(seen - true) / np.linalg.norm(true))


def started(weights, **options):
    weights = np.array(weights)
    tensor = tensorly.cp_to_tensor((weights, factors))
    given = (weights, [factor.copy() for factor in factors])
    plain = tensorly.cp_to_tensor(parafac(tensor, 2, init=given, n_iter_max=0))
    given = (weights, [factor.copy() for factor in factors])
    start = constrained_parafac(tensor, 2, init=given, n_iter_max=0, non_negative=True)
    given = (weights, [factor.copy() for factor in factors])
    kept = constrained_parafac(tensor, 2, init=given, n_iter_max=20, non_negative={1: True, 2: True}, fixed_modes=[0])
    found = relative(plain, tensor), relative(tensorly.cp_to_tensor(start), tensor), relative(kept[1][0], factors[0])
    print(f"weights {weights}: parafac starts {found[0]:.0e} off the tensor given, constrained_parafac {found[1]:.2f} off; its fixed "
          f"mode is moved by {found[2]:.2f}")
    assert found[0] < 1e-12
    return found[1:]


assert max(started([1.0, 1.0])) < 1e-12
assert min(started([3.0, 0.5])) > 0.1, "the start is the tensor given now"
assert started([10.0, 10.0])[0] > 50
assert np.isnan(started([-1.0, 2.0])).all()
PY
