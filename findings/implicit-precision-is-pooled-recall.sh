#!/usr/bin/env bash
# implicit 0.7.3, scipy 1, Python 3.11
#
# Guess: precision_at_k (and "precision" of ranking_metrics_at_k) is the mean over users of hits among the first K, divided
# by K, as everywhere else; map and ndcg beside it are means over users too.
# Seen: it is the hits of all users together over the sum of min(K, held-out items of the user): with one held-out item each
# (leave-one-out) it is recall, K times as large as precision; with unequal numbers users with many count for more. map and ndcg
# are means over users. Compare no number of it with precision from elsewhere.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet implicit==0.7.3 'scipy<2' 'numpy<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import implicit
import numpy as np
import scipy.sparse
from implicit.cpu.als import AlternatingLeastSquares
from implicit.evaluation import precision_at_k, ranking_metrics_at_k

assert implicit.__version__ == "0.7.3", implicit.__version__
items, k = 40, 10
model = AlternatingLeastSquares(factors=2)  # everybody is recommended items 0, 1, 2, … in this order
model.item_factors = np.stack([np.arange(items, 0, -1), np.zeros(items)], 1).astype(np.float32)


def judged(held):
    model.user_factors = np.tile(np.array([[1, 0]], np.float32), (len(held), 1))
    test = np.zeros((len(held), items), np.float32)
    for user, chosen in enumerate(held):
        test[user, chosen] = 1
    given = scipy.sparse.csr_matrix(test.shape, dtype=np.float32), scipy.sparse.csr_matrix(test)
    seen = ranking_metrics_at_k(model, *given, K=k, show_progress=False)["precision"]
    assert np.isclose(seen, precision_at_k(model, *given, K=k, show_progress=False))
    hits = (test[:, :k] > 0).sum(1)
    pooled = hits.sum() / np.minimum(k, (test > 0).sum(1)).sum()
    print(f"hits {hits.tolist()} of {(test > 0).sum(1).tolist()} held out: mean of hits / {k} is {hits.mean() / k:.3f}, "
          f"seen {seen:.3f}, pooled {pooled:.3f}, mean recall {np.mean(hits / (test > 0).sum(1)):.3f}")
    assert np.isclose(seen, pooled) and not np.isclose(seen, hits.mean() / k), "no longer pooled"
    return seen


assert np.isclose(judged([[0], [3], [30], [9]]), 3 / 4)  # one each: recall, not 3 / 40
judged([[0], [0, 1, *range(20, 30)], [25]])
PY
