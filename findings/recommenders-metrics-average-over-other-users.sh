#!/usr/bin/env bash
# recommenders 1.2.1, pandas 2, Python 3.11
#
# Guess: each ranking metric is the mean over the users of the held-out table: a user for whom a model has no recommendation, or no
# right one, counts as zero in all of them.
# Seen: precision_at_k, recall_at_k and map_at_k leave out users without recommendations; r_precision_at_k leaves out every user for
# whom it is zero, so that it is 1 where one user of ten got one item right; ndcg_at_k counts all. Nothing is said. Give every user
# recommendations (made-up items do), and take R-precision from elsewhere.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --no-deps recommenders==1.2.1
"$place/venv/bin/pip" install --quiet 'pandas<3' 'scikit-learn<2' 'numpy<3'  # the package asks for far more than its metrics need
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import numpy as np
import pandas
from recommenders.evaluation import python_evaluation as evaluation

assert importlib.metadata.version("recommenders") == "1.2.1"
k = 5
held = pandas.DataFrame([(user, user, 1.0) for user in range(10)], columns=["userID", "itemID", "rating"])


def judged(what, rows):
    given = pandas.DataFrame([(user, item, -float(rank)) for user, items in rows.items() for rank, item in enumerate(items)],
                             columns=["userID", "itemID", "prediction"])
    values = {}
    for name in ("precision_at_k", "recall_at_k", "map_at_k", "r_precision_at_k", "ndcg_at_k"):
        values[name] = float(getattr(evaluation, name)(held, given, k=k))
    print(what, {name: round(value, 3) for name, value in values.items()})
    return values


# one user of ten gets the right item at the top, four get wrong items, five get nothing
some = {0: [0, 90], **{user: [91, 92] for user in range(1, 5)}}
seen = judged("five users without recommendations:", some)
expected = {"precision_at_k": 1 / (5 * k), "recall_at_k": 1 / 5, "map_at_k": 1 / 5, "r_precision_at_k": 1, "ndcg_at_k": 1 / 10}
assert all(np.isclose(seen[name], value) for name, value in expected.items()), "other users are counted now"

seen = judged("the five get wrong items:          ", some | {user: [93] for user in range(5, 10)})
expected = {"precision_at_k": 1 / (10 * k), "recall_at_k": 1 / 10, "map_at_k": 1 / 10, "r_precision_at_k": 1, "ndcg_at_k": 1 / 10}
assert all(np.isclose(seen[name], value) for name, value in expected.items()), "other users are counted now"

# the nine others get the right item in the second place, which R-precision of one item does not read: 1 of 10 is right
later = judged("all others have it second:         ", {0: [0, 90], **{user: [91, user] for user in range(1, 10)}})
assert np.isclose(later["recall_at_k"], 1) and np.isclose(later["r_precision_at_k"], 1)
PY
