#!/usr/bin/env bash
# implicit 0.7.3, scipy 1, Python 3.11, on a CPU
#
# Guess: recommend(..., N, filter_already_liked_items=True) gives at most N unseen items, and fewer than N where fewer are
# left; an entry that is stored as 0 is none.
# Seen: alternating least squares fills the list up to N with liked items, their score the least float32 (−3.4e38); the
# neighbour models fill it up with liked items of score 0, which real items may have too, while unseen items are absent
# from the same list. Entries that are stored as zeros count as liked.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet implicit==0.7.3 'scipy<2' 'numpy<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import implicit
import numpy as np
import scipy.sparse
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender

assert implicit.__version__ == "0.7.3", implicit.__version__
rng = np.random.default_rng(0)
plays = scipy.sparse.csr_matrix((rng.random((20, 6)) < 0.6).astype(np.float32))
liked, unseen = set(plays[0].indices.tolist()), set(range(6)) - set(plays[0].indices.tolist())
print(f"liked {sorted(liked)}, unseen {sorted(unseen)}")

als = AlternatingLeastSquares(factors=2, random_state=0, use_gpu=False)
als.fit(plays, show_progress=False)
items, scores = als.recommend(0, plays[0], N=6, filter_already_liked_items=True)
print("least squares:", items.tolist(), [f"{score:.2g}" for score in scores])
assert set(items[: len(unseen)].tolist()) == unseen
assert set(items[len(unseen) :].tolist()) == liked and (scores[len(unseen) :] < -1e38).all()

neighbours = CosineRecommender(K=3)
neighbours.fit(plays, show_progress=False)
items, scores = neighbours.recommend(0, plays[0], N=6, filter_already_liked_items=True)
print("neighbours:", items.tolist(), [f"{score:.2g}" for score in scores])
filled = [score for item, score in zip(items.tolist(), scores, strict=True) if item in liked]
assert filled and not any(filled) and unseen - set(items.tolist())

zeros = plays.copy()
zeros.data[::2] = 0
als.fit(zeros, show_progress=False)
items, scores = als.recommend(0, zeros[0], N=6, filter_already_liked_items=True)
stored = {item for item, value in zip(zeros[0].indices.tolist(), zeros[0].data, strict=True) if value == 0}
lowest = {item for item, score in zip(items.tolist(), scores, strict=True) if score < -1e38}
print("stored zeros", sorted(stored), "filtered", sorted(lowest))
assert stored and stored <= lowest
PY
