#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, Python 3.11
#
# Guess: robust_pca(X) gives two parts that add up to X within its tolerance or says that it did not get there; in another unit
# (1000 X) it gives 1000 times the parts, since all that it minimises is proportional to X.
# Seen: its first step size (1e-4) and its tolerance are absolute numbers, and its 100 steps of 10 % end at a step size of about 1.4:
# of a tensor with entries of about 0.001 three quarters are in neither part and the sparse part is empty; nothing is said. In a unit
# a million times as large the parts do add up, yet they are others. Bring X to values of about 1 or more, and look at X - D - E.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from tensorly.decomposition import robust_pca

assert tensorly.__version__ == "0.10.0", tensorly.__version__
rng = np.random.default_rng(0)
low = np.einsum("a,b,c->abc", *[rng.standard_normal(size) for size in (12, 12, 10)])
spikes = np.zeros_like(low)
spikes.flat[rng.choice(low.size, 40, replace=False)] = 5.0


def parts(unit):
    whole = unit * (low + spikes)
    smooth, sparse = robust_pca(whole, reg_E=0.1, verbose=0)
    lost = float(np.linalg.norm(whole - smooth - sparse) / np.linalg.norm(whole))
    share = float(np.linalg.norm(smooth) / np.linalg.norm(whole))
    print(f"unit {unit:g}: {lost:.0e} of X is in neither part; the low-rank part has {share:.2f} of its norm, the sparse part "
          f"{np.count_nonzero(sparse)} of {low.size} entries")
    return lost, share, np.count_nonzero(sparse)


found = {unit: parts(unit) for unit in (1e-3, 1e-2, 1.0, 1e3)}
assert found[1e-3][0] > 0.5 and found[1e-3][2] == 0, "small units are decomposed now"
assert found[1e-2][0] > 0.1 and found[1e3][0] < 1e-6
assert len({count for _, _, count in found.values()}) == 4
PY
