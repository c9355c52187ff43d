#!/usr/bin/env bash
# pymanopt 2.2.1, autograd 1.9.1, numpy 2, Python 3.11
#
# Guess: on FixedRankEmbedded the gradient of a cost written in u, s, vt is the projection of the cost's gradient in the matrix, at
# every point of the manifold; an optimizer can start at a matrix with equal singular values, such as an isometry.
# Seen: so it is where all singular values differ. Two equal ones give NaN, for the gradient in u and vt is divided by the difference
# of their squares; near ones cost precision by the same ratio, from 1e-16 to 6e-10 here at a millionth apart. An optimizer then raises
# "SVD did not converge", which names no cause. The projection of the matrix gradient (manifold.projection) is finite at the same
# points: give it as riemannian_gradient, or start from values that differ.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pymanopt==2.2.1 autograd==1.9.1 'numpy<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import autograd.numpy as anp
import numpy as np
import pymanopt
from pymanopt.manifolds import FixedRankEmbedded
from pymanopt.optimizers import SteepestDescent

assert version("pymanopt") == "2.2.1", version("pymanopt")
np.random.seed(0)
manifold = FixedRankEmbedded(7, 5, 3)
target = np.random.default_rng(0).standard_normal((7, 5))


@pymanopt.function.autograd(manifold)
def cost(u, s, vt):
    return anp.sum(((u * s) @ vt - target) ** 2) / 2


problem = pymanopt.Problem(manifold, cost)


def at(values):
    point = manifold.random_point()
    return type(point)(point.u, np.array(values, float), point.vt)


for values, least, most in (([3, 2, 1], 0, 1e-14), ([3, 3 - 1e-6, 1], 1e-12, 1e-8), ([1, 1, 1], None, None)):
    point = at(values)
    projected = manifold.projection(point, (point.u * point.s) @ point.vt - target)
    off = np.max([np.abs(one - other).max() for one, other in zip(problem.riemannian_gradient(point), projected)])  # NaN stays NaN
    print(f"singular values {values}: the gradient is {off:.0e} off the projection, whose numbers are all finite: "
          f"{all(np.isfinite(part).all() for part in projected)}")
    assert np.isnan(off) if least is None else least <= off < most, "equal singular values have a gradient now"
best = float((np.linalg.svd(target)[1][3:] ** 2).sum() / 2)
reached = SteepestDescent(verbosity=0, max_iterations=300).run(problem, initial_point=at([3, 2, 1])).cost
assert np.isclose(reached, best), (reached, best)
try:
    stuck = SteepestDescent(verbosity=0).run(problem, initial_point=at([1, 1, 1])).cost
    print(f"from an isometry the cost {stuck}, the best is {best:.3f}")
    assert not stuck < best * 1.01
except np.linalg.LinAlgError as error:
    print(f"from values 3, 2, 1 the best cost is reached, {reached:.3f}; from an isometry LinAlgError: {error}")
PY
