#!/usr/bin/env bash
# scikit-learn 1.9.1, numpy 2, Python 3.11
#
# Guess: IncrementalPCA's noise_variance_, and with it get_covariance() and get_precision(), agree with those of PCA but for the few
# percent that batches cost, as its components and their variances do.
# Seen: what a batch has outside of the components is thrown away with it, and at the end the rest of the last batch alone is divided by
# the number of all samples: with ten batches the noise is a tenth of what it is, with forty a fortieth, and the squared Mahalanobis
# distances by get_precision() are 9 and 35 times too large, for the very data that were fitted. One batch is exact. Nothing is said. Take
# (var_.sum() - explained_variance_.sum()) / (n_features - n_components), which is right to a percent.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet scikit-learn==1.9.1 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import sklearn
from sklearn.decomposition import PCA, IncrementalPCA

assert sklearn.__version__ == "1.9.1", sklearn.__version__
rng = np.random.default_rng(0)
data = rng.standard_normal((2000, 3)) * [5.0, 4.0, 3.0] @ np.linalg.qr(rng.standard_normal((20, 3)))[0].T
data += rng.standard_normal(data.shape)


def distance(model):
    """The mean squared Mahalanobis distance, 20 for the true covariance."""
    apart = data - model.mean_
    return float(np.einsum("ni,ij,nj->n", apart, model.get_precision(), apart).mean())


whole = PCA(3).fit(data)
print(f"PCA: noise {whole.noise_variance_:.3f}, mean squared distance {distance(whole):.1f}")
assert abs(whole.noise_variance_ - 1) < 0.05 and abs(distance(whole) - 20) < 0.5
for batches in (1, 2, 10, 40):
    model = IncrementalPCA(3, batch_size=len(data) // batches).fit(data)
    kept = model.explained_variance_ / whole.explained_variance_
    noise = model.noise_variance_ / whole.noise_variance_
    by_hand = (model.var_.sum() - model.explained_variance_.sum()) / 17 / whole.noise_variance_
    print(f"{batches} batches: variances of the components {kept.round(3)} times those of PCA, noise {noise:.3f} times; mean squared "
          f"distance {distance(model):.1f}; noise from var_ {by_hand:.3f} times")
    assert np.abs(kept - 1).max() < 0.05 and abs(by_hand - 1) < 0.02
    assert abs(noise * batches - 1) < 0.2, "the noise is that of all batches now"
    assert batches < 10 or distance(model) > 100
PY
