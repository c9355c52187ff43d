#!/usr/bin/env bash
# geoopt 0.5.1, torch 2.13.0, Python 3.11
#
# Guess: on Stiefel(), retr(x, u) and expmap(x, u) begin in the direction u where u is tangent, and proju leaves a tangent
# vector as it is; the canonical metric (the default) and the Euclidean one differ in lengths alone.
# Seen: so it is with canonical=False. By default the part of u that turns x within its own span, x xᵀu, counts twice in all
# three: retr is no retraction, expmap is the same function as retr, and proju of a tangent vector is another one. The
# package's optimizers move further in these directions than their learning rate says; the constraint xᵀx = 1 holds.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet geoopt==0.5.1 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import geoopt
import torch

assert geoopt.__version__ == "0.5.1", geoopt.__version__
torch.set_default_dtype(torch.float64)
step = 1e-6


def seen(canonical):
    """The inner and the outer part of each direction, as multiples of those of the tangent vector that was given."""
    torch.manual_seed(0)
    manifold = geoopt.Stiefel(canonical=canonical)
    x = manifold.random(8, 3)
    u = manifold.proju(x, torch.randn(8, 3))
    assert torch.allclose(x.T @ u, -u.T @ x) and manifold.check_vector_on_tangent(x, u)
    inner = x @ (x.T @ u)
    ways = {"retr": (manifold.retr(x, step * u) - x) / step, "expmap": (manifold.expmap(x, step * u) - x) / step,
            "proju": manifold.proju(x, u)}
    times = {}
    for name, way in ways.items():
        along = x @ (x.T @ way)
        times[name] = float((along * inner).sum() / inner.square().sum())
        assert torch.allclose(way - along, u - inner, atol=1e-4) and torch.allclose(along, times[name] * inner, atol=1e-4)
        print(f"canonical={canonical}: {name} takes the turn within the span {times[name]:.4f} times, the rest once")
    assert torch.allclose(manifold.retr(x, u).T @ manifold.retr(x, u), torch.eye(3))
    return times, torch.equal(manifold.retr(x, u), manifold.expmap(x, u))


times, same = seen(canonical=False)
assert all(abs(value - 1) < 1e-4 for value in times.values()) and not same
times, same = seen(canonical=True)
assert all(abs(value - 2) < 1e-4 for value in times.values()) and same, "counted once now"
PY
