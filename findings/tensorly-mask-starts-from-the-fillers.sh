#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, Python 3.11
#
# Guess: with mask=, tucker() and parafac() take what stands at the missing places (mask 0) for nothing, so that any filler
# gives the same result.
# Seen: the first estimates are made from the fillers too, and the steps that replace them afterwards do not get away from
# large ones: with zeros an exactly low-rank tensor is recovered, with -999 at the missing places the error is many times
# the tensor itself after 1,000 iterations, at the observed places too. NaN raises LinAlgError. Fill with zeros or means.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from tensorly.decomposition import parafac, tucker

assert tensorly.__version__ == "0.10.0", tensorly.__version__
rng = np.random.default_rng(0)
factors = [rng.standard_normal((size, 2)) for size in (12, 10, 8)]
wholes = {"tucker": tensorly.tucker_to_tensor((rng.standard_normal((2, 2, 2)), factors)),
          "parafac": tensorly.cp_to_tensor((None, factors))}
observed = rng.random((12, 10, 8)) < 0.7


def recovered(way, filler):
    whole = wholes[way]
    given, mask = np.where(observed, whole, filler), observed.astype(float)
    if way == "tucker":
        back = tensorly.tucker_to_tensor(tucker(given, rank=[2, 2, 2], mask=mask, n_iter_max=1000))
    else:
        back = tensorly.cp_to_tensor(parafac(given, rank=2, mask=mask, n_iter_max=1000))
    errors = [float(np.linalg.norm((back - whole)[part]) / np.linalg.norm(whole[part])) for part in (~observed, observed)]
    print(f"{way}, {filler:g} at the missing places: relative error there {errors[0]:.2g}, at the observed ones {errors[1]:.2g}")
    return errors


for way in wholes:
    assert max(recovered(way, 0.0)) < 0.02
    missing, seen = recovered(way, -999.0)
    assert missing > 5 and seen > 0.1, "fillers count for nothing now"
    try:
        recovered(way, float("nan"))
    except np.linalg.LinAlgError as error:
        print(f"{way}, NaN: LinAlgError, {error}")
    else:
        raise AssertionError("NaN is taken now")
PY
