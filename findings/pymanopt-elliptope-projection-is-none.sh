#!/usr/bin/env bash
# pymanopt 2.2.1, numpy 2, Python 3.11
#
# Guess: Elliptope.projection, and random_tangent_vector and transport, which use it, give tangent vectors: rows at right angles to the
# point's, no part that only turns the factor (YᵀU symmetric); projecting twice is projecting once, as on PSDFixedRank.
# Seen: the rows are right. The turning part is taken from the vector before the rows were, in one of its two places, so that what
# is left turns the factor by more than the size of the vector, and a second projection moves it by three quarters. Gradients have no
# turning part to begin with, and descent reaches the optimum; directions of your own and transported vectors are off. Solve YᵀYΩ + ΩYᵀY = YᵀU − UᵀY with the
# rows taken out of U first, and subtract YΩ.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pymanopt==2.2.1 'numpy<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import scipy.linalg
from pymanopt.manifolds import Elliptope, PSDFixedRank

assert version("pymanopt") == "2.2.1", version("pymanopt")
np.random.seed(0)


def turning(point, vector):
    return np.linalg.norm(point.T @ vector - vector.T @ point) / np.linalg.norm(vector)


for manifold in (PSDFixedRank(12, 4), Elliptope(12, 4)):
    point, vector = manifold.random_point(), np.random.standard_normal((12, 4))
    once = manifold.projection(point, vector)
    twice = manifold.projection(point, once)
    moved = np.linalg.norm(twice - once) / np.linalg.norm(once)
    drawn = turning(point, manifold.random_tangent_vector(point))
    name = type(manifold).__name__
    print(f"{name}: the second projection moves {moved:.0%}; turning part {turning(point, once):.2f}, of a random tangent vector {drawn:.2f}")
    assert (moved > 0.1 and turning(point, once) > 0.1 and drawn > 0.1) == (name == "Elliptope"), "it is a projection now"
assert np.abs((point * once).sum(1)).max() < 1e-12

rows = vector - point * (point * vector).sum(1, keepdims=True)
gram = point.T @ point
right = rows - point @ scipy.linalg.solve_continuous_lyapunov(gram, point.T @ rows - rows.T @ point)
print(f"as written above: turning part {turning(point, right):.0e}, rows {np.abs((point * right).sum(1)).max():.0e}")
assert turning(point, right) < 1e-12 and np.abs((point * right).sum(1)).max() < 1e-12
PY
