#!/usr/bin/env bash
# cornac 3.0.1, Python 3.11
#
# Guess: the value of a metric does not depend on which others are measured in the same run, and MRR and NDCG(k=-1), "all items" in
# the docstring, look at the whole ranking.
# Seen: the ranking is sorted as far as the largest k of the metrics, for which -1 counts as less than any other, and is in whatever
# order numpy's partition leaves behind it. Together with Precision(k=1), of a model that puts each user's item in the 300th place,
# most users' MRR and NDCG(k=-1) are those of other places; alone, both are right. Nothing is said. How much goes astray depends on
# the processor too: with vector instructions for partitions the first few dozen come out sorted by the way, without them not even
# these. Measure MRR and metrics over all items in a run of their own (MAP and AUC, which read the scores, are right in any company),
# or beside one with k as large as the number of items.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet cornac==3.0.1 'numpy<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - 2>"$place/log" <<'PY' || { cat "$place/log"; exit 1; }
import importlib.metadata

import numpy as np
from cornac.data import Dataset
from cornac.eval_methods.base_method import ranking_eval
from cornac.metrics import AUC, MAP, MRR, NDCG, Precision
from cornac.models import Recommender

assert importlib.metadata.version("cornac") == "3.0.1"
users, items = 50, 1000
rng = np.random.default_rng(0)
held = rng.permutation(items - 1)[:users]  # an item of each user
train = Dataset.from_uir([(user, items - 1, 1.0) for user in range(users)] + [(users, item, 1.0) for item in range(items)])
test = Dataset.build([(user, int(held[user]), 1.0) for user in range(users)], fmt="UIR", global_uid_map=train.uid_map,
                     global_iid_map=train.iid_map)


class Placed(Recommender):
    """Scores without ties, that of the user's item in the given place of those that are no training items."""

    def score(self, user_idx, item_idx=None):
        own, last = train.iid_map[int(held[user_idx])], train.iid_map[items - 1]
        order = np.random.default_rng(user_idx).permutation(items)
        order = order[(order != own) & (order != last)]
        scores = np.zeros(items)
        scores[np.insert(order, self.place - 1, own)] = np.arange(items, 1, -1.0)
        return scores if item_idx is None else scores[item_idx]


def measured(place, *others):
    metrics = [MRR(), NDCG(k=-1), MAP(), AUC(), *others]
    model = Placed("placed").fit(train)
    model.place = place
    values, of_users = ranking_eval(model, metrics, train, test)
    astray = sum(not np.isclose(value, 1 / place) for value in of_users[0].values())
    print(f"place {place}, with {[other.name for other in others]}: " + ", ".join(f"{metric.name} {value:.4f}" for metric, value
          in zip(metrics, values[:4])) + f"; MRR of {astray} of {users} users is another place's")
    return np.array(values[:4]), astray


for place in (10, 300):
    alone, astray = measured(place)
    assert np.allclose(alone[:3], [1 / place, 1 / np.log2(place + 1), 1 / place]) and not astray
    beside, astray = measured(place, Precision(k=items - 1))
    assert np.allclose(beside, alone) and not astray
    for k in (1, 5):
        beside, astray = measured(place, Precision(k=k))
        assert np.allclose(beside[2:], alone[2:])
        assert place == 10 or astray > users / 2, "the whole ranking is sorted now"
PY
