#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, Python 3.11
#
# Guess: tucker() with a rank above the size of a mode is refused or cut down to the size, as its own warning says ("Setting
# n_eigenvecs to 3"), and so reproduces the tensor as well as the full rank does.
# Seen: the missing columns of the factor are filled with random numbers, which are not orthogonal to the others, and the
# core keeps the rank that was asked for: what comes back is farther from the tensor than zeros are (asked for rank 4 on the
# two modes of 3 of a convolution's kernel). Nothing but that warning says so; at rank 3 it is exact.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import tensorly
from tensorly.decomposition import tucker

assert tensorly.__version__ == "0.10.0", tensorly.__version__
kernel = np.random.default_rng(0).standard_normal((8, 6, 3, 3))


def decomposed(rank):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        core, factors = tucker(kernel, rank=rank, random_state=0)
    back = tensorly.tucker_to_tensor((core, factors))
    error = np.linalg.norm(back - kernel) / np.linalg.norm(kernel)
    print(f"rank {rank}: core {core.shape}, relative error {error:.2g}, warnings: {sorted({str(w.message) for w in said})}")
    return core.shape, error, said


shape, error, said = decomposed([8, 6, 3, 3])
assert error < 1e-10 and not said
shape, error, said = decomposed([8, 6, 4, 4])
assert shape == (8, 6, 4, 4), shape
assert error > 1, "the tensor is reproduced now"
assert any("Setting n_eigenvecs to 3" in str(w.message) for w in said)
PY
