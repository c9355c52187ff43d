#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, Python 3.11
#
# Guess: a mode in fixed_modes stays what it was given and the error that is reported is that of the result: the last mode may be
# fixed or is refused with a warning, as parafac does; orthogonalise=True makes factors orthogonal in every iteration, save fixed ones.
# Seen: non_negative_parafac_hals takes a fixed last mode and then computes its error from the product of another mode: where both
# have one size it reports two to five times the true error and stops by that number, where they have not it raises ValueError.
# parafac(orthogonalise=True, fixed_modes=[0]) replaces the fixed factor by an orthogonal one, and True counts as the number 1: factors are
# made orthogonal in the first two iterations only, orthogonalise=n_iter_max does it in all. Move the fixed mode to the front.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from tensorly.decomposition import non_negative_parafac_hals, parafac

assert tensorly.__version__ == "0.10.0", tensorly.__version__
rng = np.random.default_rng(0)


def relative(seen, true):
    return float(np.linalg.norm(seen - true) / np.linalg.norm(true))


def fitted(sizes, fixed):
    rng = np.random.default_rng(0)
    factors = [rng.random((size, 2)) for size in sizes]
    tensor = tensorly.cp_to_tensor((None, factors)) + 0.2 * rng.random(sizes)
    found, errors = non_negative_parafac_hals(tensor, 2, init=(None, factors), fixed_modes=fixed, n_iter_max=200, return_errors=True)
    true = relative(tensorly.cp_to_tensor(found), tensor)
    print(f"non_negative_parafac_hals, {sizes}, modes {fixed} fixed: reported error {errors[-1]:.3f}, true {true:.3f}")
    return float(errors[-1]) / true


for fixed in ([], [0], [0, 1]):
    assert abs(fitted((6, 6, 6), fixed) - 1) < 1e-6
for fixed in ([2], [0, 2], [1, 2]):
    assert fitted((6, 6, 6), fixed) > 1.5, "the error is the true one now"
try:
    fitted((5, 6, 7), [2])
except ValueError as error:
    print("sizes 5, 6, 7: ValueError,", error)
else:
    raise AssertionError("a fixed last mode of another size works now")

factors = [rng.standard_normal((size, 2)) for size in (5, 6, 7)]
tensor = tensorly.cp_to_tensor((None, factors)) + 0.1 * rng.standard_normal((5, 6, 7))
for orthogonalise in (False, True):
    kept = parafac(tensor, 2, init=(None, [f.copy() for f in factors]), fixed_modes=[0], orthogonalise=orthogonalise, n_iter_max=50)
    moved = relative(kept[1][0], factors[0])
    print(f"orthogonalise={orthogonalise}: the fixed mode is moved by {moved:.2f}")
    assert moved > 0.3 if orthogonalise else moved == 0, "fixed modes stay now"
results = [tensorly.cp_to_tensor(parafac(tensor, 2, orthogonalise=o, n_iter_max=50, tol=0)) for o in (True, 1, 50)]
print(f"orthogonalise=True is {relative(results[0], results[1]):.0e} from 1 and {relative(results[0], results[2]):.0e} from 50")
assert np.array_equal(results[0], results[1]) and relative(results[0], results[2]) > 0.01
PY
