#!/usr/bin/env bash
# scikit-surprise 1.1.5, numpy 2, Python 3.11
#
# Guess: each algorithm takes the ratings as the numbers that they are: SlopeOne fills half-star ratings that are the sum of a user's
# and an item's part exactly, as it fills whole ones; ratings in other units give the same predictions in those units.
# Seen: SlopeOne and CoClustering keep each rating in a C integer, so that 3.5 counts as 3. Half stars are off by .2 and the same
# ratings doubled are exact; ratings between 0 and 1 are all zeros to CoClustering, which predicts 0 for every pair. No error, no
# warning; means of users are taken from the uncut ratings. Multiply fractions up to integers, with the rating_scale, and divide
# afterwards. The other algorithms (SVD, SVD++, NMF, baselines, neighbours) read fractions.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet scikit-surprise==1.1.5 'numpy<3' 'pandas<4'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import pandas
import surprise

assert surprise.__version__ == "1.1.5", surprise.__version__
rng = np.random.default_rng(0)
known = rng.random((60, 40)) < 0.4
additive = rng.integers(2, 5, (60, 1)) / 2 + rng.integers(0, 4, (1, 40)) / 2  # in half stars


def predicted(algorithm, ratings):
    rows = [(user, item, float(ratings[user, item])) for user, item in zip(*known.nonzero())]
    reader = surprise.Reader(rating_scale=(0, 1000))
    data = surprise.Dataset.load_from_df(pandas.DataFrame(rows, columns=["user", "item", "rating"]), reader)
    algorithm.fit(data.build_full_trainset())
    return np.array([[algorithm.predict(user, item).est for item in range(40)] for user in range(60)])


slope = surprise.SlopeOne
half, whole = predicted(slope(), additive), predicted(slope(), 2 * additive) / 2
off = [float(np.abs(seen - additive)[~known].max()) for seen in (half, whole)]
print(f"SlopeOne, additive ratings: half stars off by {off[0]:.2f}, the same ratings doubled and halved again by {off[1]:.0e}")
assert off[0] > 0.1 and off[1] < 1e-9, "fractions are read now"

shares = rng.random((60, 40))
for kind, options in ((slope, {}), (surprise.CoClustering, {"random_state": 0}), (surprise.BaselineOnly, {"verbose": False}),
                      (surprise.KNNBasic, {"verbose": False, "sim_options": {"name": "pearson"}})):
    small, large = predicted(kind(**options), shares), predicted(kind(**options), 1000 * shares) / 1000
    off = float(np.abs(small - large).max())
    print(f"{kind.__name__}: ratings between 0 and 1 give {small.min():.2f} to {small.max():.2f}, a thousand times as large ones other "
          f"predictions by {off:.0e}")
    assert (off > 0.1) == (kind in (slope, surprise.CoClustering)), "another set of algorithms"
    assert kind is not surprise.CoClustering or not small.any()
PY
