#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, Python 3.11
#
# Guess: svd="symeig_svd" decomposes the smaller of A Aᵀ and AᵀA, which is what makes the way through eigenvalues cheap, and gives the
# singular values in any unit, small ones less exactly.
# Seen: it takes the larger: of an unfolding of 4 x 300 a matrix of 300 x 300 (of 8 x 100,000 it would be 80 GB), of 300 x 4 as well.
# Eigenvalues are held above the type's epsilon, an absolute number: of a float32 matrix whose true values lie below 3e-4, as a
# layer's update does, all values come back as 3.5e-4 and the vectors of one side are far from orthonormal; parafac2 then stops with an
# error about its projections, which a unit 10,000 times as large does not raise. Use truncated_svd or randomized_svd.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from tensorly.decomposition import parafac2
from tensorly.tenalg.svd import svd_interface

assert tensorly.__version__ == "0.10.0", tensorly.__version__
rng = np.random.default_rng(0)
shapes, true_eigh = [], tensorly.eigh


def watched(matrix, *given, **options):
    shapes.append(matrix.shape)
    return true_eigh(matrix, *given, **options)


tensorly.eigh = watched
for shape in ((4, 300), (300, 4)):
    svd_interface(rng.standard_normal(shape), method="symeig_svd", n_eigenvecs=2)
    print(f"{shape}: eigenvalues of a matrix of {shapes[-1]}")
    assert shapes[-1] == (300, 300), "the smaller one is taken now"

for unit in (1.0, 1e-2, 1e-4):
    matrix = (unit * rng.standard_normal((8, 60)) / 8).astype(np.float32)
    left, values, _ = svd_interface(matrix, method="symeig_svd", n_eigenvecs=4)
    true = np.linalg.svd(matrix, compute_uv=False)[:4]
    skew = float(np.abs(left.T @ left - np.eye(4)).max())
    print(f"unit {unit:g}: values {values}, true {true}; left vectors are {skew:.0e} from orthonormal")
    if unit == 1e-4:
        assert np.allclose(values, np.sqrt(np.finfo(np.float32).eps)) and (true < values).all() and skew > 0.5, "small units work now"
    else:
        assert np.allclose(values, true, rtol=1e-3) and skew < 1e-4

slices = rng.standard_normal((6, 7, 8)).astype(np.float32)
parafac2(list(slices), 2, init="svd", svd="symeig_svd", n_iter_max=5)
try:
    parafac2(list(np.float32(1e-4) * slices), 2, init="svd", svd="symeig_svd", n_iter_max=5)
except ValueError as error:
    print("parafac2 in units of 1e-4:", str(error)[:70])
else:
    raise AssertionError("parafac2 takes small units now")
PY
