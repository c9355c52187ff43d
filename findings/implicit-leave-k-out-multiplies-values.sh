#!/usr/bin/env bash
# implicit 0.7.3, scipy 1, Python 3.11
#
# Guess: leave_k_out_split moves k entries of each eligible user into the test matrix with their values: training + test is
# the whole.
# Seen: which entries are moved is right; the value in the test matrix is multiplied by 1 + the number of users that follow
# directly and are not eligible (k + 1 entries or fewer); those before the first eligible user count for the last one. A
# rating of 3 becomes 12. Ranks and hits are not touched; errors of ratings, and weights by counts, are. Take the values
# from the whole matrix at the places of the test entries.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet implicit==0.7.3 'scipy<2' 'numpy<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import implicit
import numpy as np
import scipy.sparse
from implicit.evaluation import leave_k_out_split

assert implicit.__version__ == "0.7.3", implicit.__version__
counts = [1, 4, 2, 0, 1, 5, 6, 2]  # entries of each user; with K = 1, users with 3 or more are eligible: 1, 5 and 6
ratings = np.zeros((len(counts), 8), np.float32)
for user, count in enumerate(counts):
    ratings[user, :count] = 3
for seed in range(5):
    train, test = (part.toarray() for part in leave_k_out_split(scipy.sparse.csr_matrix(ratings), K=1, random_state=seed))
    places = (train > 0) | (test > 0)
    assert (places == (ratings > 0)).all() and not ((train > 0) & (test > 0)).any()
    assert ((test > 0).sum(1) == [0, 1, 0, 0, 0, 1, 1, 0]).all() and set(train[train > 0].tolist()) == {3.0}
    held = test.max(1)[[1, 5, 6]].tolist()
    print(f"seed {seed}: all ratings are 3; held out of users 1, 5, 6: {held}")
    assert held == [3 * 4, 3, 3 * 2], "the values are kept now"
PY
