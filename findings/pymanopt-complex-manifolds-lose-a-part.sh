#!/usr/bin/env bash
# pymanopt 2.2.1, numpy 2, Python 3.11
#
# Guess: the manifolds of complex numbers obey the laws of the real ones: on UnitaryGroup a gradient is tangent and gradient descent
# finds the unitary matrix nearest to another one; on ComplexCircle exp stays on the circle.
# Seen: UnitaryGroup.projection, through which gradients go, subtracts the transpose where the conjugate transpose belongs: the
# gradient leaves the tangent space and the optimizers stop ("min step_size reached") far above the nearest matrix's distance.
# ComplexCircle.exp returns real numbers, the imaginary parts cut off (numpy warns of it), so no longer of modulus 1; its
# retraction is right. SpecialOrthogonalGroup, Stiefel and ComplexGrassmann obey these laws.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pymanopt==2.2.1 'numpy<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import pymanopt
from pymanopt.manifolds import ComplexCircle, SpecialOrthogonalGroup, UnitaryGroup
from pymanopt.optimizers import SteepestDescent

assert version("pymanopt") == "2.2.1", version("pymanopt")
np.random.seed(0)
rng = np.random.default_rng(0)


def nearest(manifold, target):
    """Half the squared distance that descent ends with over the least one, and how far its gradient is from tangent."""
    u, _, vh = np.linalg.svd(target)
    least = np.linalg.norm(u @ vh - target) ** 2 / 2
    cost = pymanopt.function.numpy(manifold)(lambda x: np.linalg.norm(x - target) ** 2 / 2)
    gradient = pymanopt.function.numpy(manifold)(lambda x: x - target)
    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    ended = SteepestDescent(verbosity=0, max_iterations=2000).run(problem, initial_point=np.eye(len(target), dtype=target.dtype))
    seen = problem.riemannian_gradient(manifold.random_point())
    return ended.cost / least, np.linalg.norm(seen + seen.conj().T) / np.linalg.norm(seen)


real = np.linalg.qr(rng.standard_normal((4, 4)))[0]
real = real * np.sign(np.linalg.det(real)) ** (np.arange(4) == 0) + rng.standard_normal((4, 4)) / 10
mixed = rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4))
for name, manifold, target in (("rotations", SpecialOrthogonalGroup(4), real), ("unitary matrices", UnitaryGroup(4), mixed)):
    ratio, out = nearest(manifold, target)
    print(f"{name}: descent ends at {ratio:.2f} times the least cost, {out:.0%} of the gradient is not tangent")
    right = np.isclose(ratio, 1) and out < 1e-9
    assert right == (name == "rotations"), "UnitaryGroup is right now"

circle = ComplexCircle(5)
point = circle.random_point()
step = 0.1 * circle.random_tangent_vector(point)
moved = circle.exp(point, step)
true = point * np.exp(1j * (step / (1j * point)).real)
print(f"ComplexCircle.exp: {moved.dtype}, moduli {np.abs(moved).round(2)}, {np.abs(moved - true.real).max():.0e} from the real part")
assert not np.iscomplexobj(moved) and np.allclose(moved, true.real)
assert np.allclose(circle.retraction(point, step), true, atol=0.01), "the retraction is on the circle"
PY
