#!/usr/bin/env bash
# scikit-learn 1.9.1, numpy 2, Python 3.11
#
# Guess: PCA's noise_variance_ is the mean of the variances that were left out over all the n_features - n_components directions left
# (Tipping and Bishop, whom it names), so that get_covariance() has the trace of the data's covariance.
# Seen: with fewer samples than features, as for activations of a wide layer, the variance left out is divided by n_samples -
# n_components in place of n_features - n_components. From 20 samples of 400 numbers the noise is 20 where 1 is true, the trace of
# get_covariance() over five times that of the data, and score() lies hundreds of nats below that of the same components with the
# right noise, on these data and on others. All solvers agree; more samples than features are right. Take
# (total variance - explained_variance_.sum()) / (n_features - n_components).
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet scikit-learn==1.9.1 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import sklearn
from sklearn.decomposition import PCA

assert sklearn.__version__ == "1.9.1", sklearn.__version__


def seen(samples, features, solver):
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.standard_normal((features, 3)))[0].T * features**0.5
    data, others = (rng.standard_normal((count, 3)) @ turned + rng.standard_normal((count, features)) for count in (samples, 500))
    model = PCA(3, svd_solver=solver, random_state=0).fit(data)
    total = data.var(axis=0, ddof=1).sum()
    trace = float(np.trace(model.get_covariance()) / total)
    scores = [model.score(data), model.score(others)]
    given = model.noise_variance_
    model.noise_variance_ = (total - model.explained_variance_.sum()) / (features - 3)
    right = float(np.trace(model.get_covariance()) / total)
    gained = [model.score(data) - scores[0], model.score(others) - scores[1]]
    print(f"{samples} samples of {features}, {solver}: noise {given:.2f} (right: {model.noise_variance_:.2f}), trace {trace:.2f} times the "
          f"data's ({right:.2f}); log-likelihoods gain {gained[0]:.1f} and {gained[1]:.1f} by the right one")
    assert abs(right - 1) < 1e-6
    return trace, gained


for solver in ("full", "randomized", "arpack"):
    trace, gained = seen(20, 400, solver)
    assert trace > 5 and gained[0] > 50, "the trace is that of the data now"
    trace, gained = seen(800, 40, solver)
    assert abs(trace - 1) < 0.01 and max(map(abs, gained)) < 0.01
PY
