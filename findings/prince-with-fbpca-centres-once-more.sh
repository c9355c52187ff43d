#!/usr/bin/env bash
# prince 0.23.0, fbpca 1.0, Python 3.11
#
# Guess: engine="fbpca", "scipy" or "sklearn" is how the singular value decomposition is computed and leaves the result: prince has
# centred and weighted the data before, or was told not to (rescale_with_mean=False).
# Seen: fbpca.pca subtracts the means of the columns unless it gets raw=True, and prince does not pass that. With fbpca the
# uncentred PCA is the centred one, a first eigenvalue of 51 becomes 1.3, and correspondence analysis and PCA with sample weights,
# whose matrices have no means of zero once they are weighted, lose a part of their first values. total_inertia_ is that of the
# right matrix, so that the shares of the variance no longer add up to 100 %. Nothing is said. Use another engine.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet prince==0.23.0 fbpca==1.0 'numpy<3' 'pandas<4' 'scikit-learn<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import numpy as np
import pandas
import prince

assert [importlib.metadata.version(name) for name in ("prince", "fbpca")] == ["0.23.0", "1.0"]
rng = np.random.default_rng(0)
table = pandas.DataFrame(rng.poisson(np.outer(10.0 ** rng.uniform(0, 3, 40), rng.random(6)), (40, 6)) + 1)
data = pandas.DataFrame(rng.standard_normal((40, 6)) + 3)
weights = 10.0 ** rng.uniform(-2, 0, 40)
plain = {"rescale_with_mean": False, "rescale_with_std": False}
cases = {
    "uncentred PCA": (lambda **how: prince.PCA(n_components=6, **plain, **how).fit(data),
                      np.linalg.svd(data, compute_uv=False) ** 2 / 40),
    "centred PCA": (lambda **how: prince.PCA(n_components=6, **how).fit(data), np.linalg.svd(np.corrcoef(data.T), compute_uv=False)),
    "PCA with weights": (lambda **how: prince.PCA(n_components=6, rescale_with_std=False, **how).fit(data, sample_weight=weights),
                         np.linalg.svd(np.cov(data.T, aweights=weights, ddof=0), compute_uv=False)),
}
shares = table / table.to_numpy().sum()
masses = np.outer(shares.sum(axis=1), shares.sum())
cases["correspondence analysis"] = (lambda **how: prince.CA(n_components=5, **how).fit(table),
                                    np.linalg.svd((shares - masses) / np.sqrt(masses), compute_uv=False)[:5] ** 2)
for what, (fitted, right) in cases.items():
    for engine in ("scipy", "sklearn", "fbpca"):
        values = fitted(engine=engine, n_iter=10, random_state=0)
        off = float(np.abs(values.eigenvalues_ / right - 1)[:2].max())
        print(f"{what}, {engine}: eigenvalues {np.round(values.eigenvalues_[:3], 4).tolist()}, {off:.0e} off; all directions "
              f"hold {np.sum(values.percentage_of_variance_):.1f} % of the variance")
        assert (off > 1e-3) == (engine == "fbpca" and what != "centred PCA"), "fbpca gets the matrix as it is now"
PY
