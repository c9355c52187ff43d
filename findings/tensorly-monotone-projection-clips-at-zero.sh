#!/usr/bin/env bash
# tensorly 0.10.0, numpy 2, scikit-learn 1.9.1, Python 3.11
#
# Guess: monotonicity_prox projects each column onto the increasing ones and unimodality_prox onto those with one peak: what is
# increasing already stays, and no other such column is nearer.
# Seen: the means of which the largest is taken lie in a table filled with zeros, so that no value but the last comes out of that
# step below zero: (-3, -2, -1) becomes (-1, -1, -1). Columns above zero become the nearest increasing ones, others do not; what
# has one peak afterwards is never the nearest, with squared distances of 1.2 (above zero) to 4 times the least. No error, no warning, and
# constrained_parafac(monotonicity=True), whose steps pass through negative values, calls it. Take scikit-learn's isotonic_regression.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly==0.10.0 'numpy>=2,<3' 'scipy<2' scikit-learn==1.9.1
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tensorly
from sklearn.isotonic import isotonic_regression
from tensorly.tenalg.proximal import monotonicity_prox, unimodality_prox

assert tensorly.__version__ == "0.10.0", tensorly.__version__
print("(-3, -2, -1) becomes", monotonicity_prox(np.array([-3.0, -2.0, -1.0]))[:, 0])
assert np.allclose(monotonicity_prox(np.array([-3.0, -2.0, -1.0]))[:, 0], -1), "increasing columns stay now"
assert np.allclose(monotonicity_prox(np.array([1.0, 2.0, 3.0]))[:, 0], [1, 2, 3])


def distance(seen, x):
    return float(np.square(seen - x).sum())


def nearest_unimodal(x):
    """The best of all ways to rise up to a place and fall from there."""
    ways = [np.concatenate([isotonic_regression(x[:peak]) if peak else [], isotonic_regression(x[peak:], increasing=False)])
            for peak in range(len(x))]
    return min((*ways, isotonic_regression(x)), key=lambda way: distance(way, x))


for shift in (-3.0, 0.0, 10.0):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 8)) + shift
    rising = [(distance(monotonicity_prox(x)[:, 0], x), distance(isotonic_regression(x), x)) for x in rows]
    single = [(distance(unimodality_prox(x[:, None])[:, 0], x), distance(nearest_unimodal(x), x)) for x in rows]
    means = [np.mean(pairs, axis=0) for pairs in (rising, single)]
    print(f"columns about {shift:g}: mean squared distance to the increasing column given {means[0][0]:.2f}, to the nearest "
          f"{means[0][1]:.2f}; with one peak {means[1][0]:.2f} and {means[1][1]:.2f}")
    assert means[1][0] > 1.15 * means[1][1], "columns with one peak are projected now"
    if shift > 0:
        assert np.allclose(*np.transpose(rising))
    else:
        assert means[0][0] > 1.1 * means[0][1], "columns below zero are projected now"
PY
