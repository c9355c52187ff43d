#!/usr/bin/env bash
# lenskit 2025.8.1, pandas 2, Python 3.11
#
# Guess: RunAnalysis(RMSE()) gives the mean over users under list_summary() and the error over all ratings under global_metrics(),
# which is said to hold no means of per-list metrics; where unscored items are to be ignored, they are left out of both.
# Seen: global_metrics() has the mean over users, to the last digit: 1.0 here where the RMSE of all ratings is 1.83, since a user of
# two ratings counts as much as one of ten; MAE alike. What the class itself aggregates (compute_list_data, global_aggregate) is
# over all ratings, and counts each unscored item as predicted exactly: leave half of the items unscored and it falls from 1 to
# 0.71. No warning. Take all pairs and numpy where two models are compared by the RMSE of all ratings.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet lenskit==2025.8.1 torch==2.13.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from lenskit.data import ItemList, ItemListCollection
from lenskit.metrics import MAE, RMSE, RunAnalysis

assert version("lenskit") == "2025.8.1"
truth, predicted = ItemListCollection(["user_id"]), ItemListCollection(["user_id"])
errors = {"many": np.full(10, 2.0), "few": np.zeros(2)}
for user, error in errors.items():
    items = np.arange(len(error))
    truth.add(ItemList(items, rating=np.full(len(error), 3.0)), user_id=user)
    predicted.add(ItemList(items, scores=3.0 + error), user_id=user)
result = RunAnalysis(RMSE(), MAE()).measure(predicted, truth)
pooled = np.concatenate(list(errors.values()))
for name, over_all in (("RMSE", np.sqrt(np.mean(pooled**2))), ("MAE", np.mean(np.abs(pooled)))):
    overall, users = result.global_metrics()[name], result.list_summary().loc[name, "mean"]
    print(f"{name}: global {overall:.4f}, mean over users {users:.4f}, over all ratings {over_all:.4f}")
    assert overall == users == 1.0 and over_all > 1.5, "global metrics are over all ratings now"

for metric in (RMSE(missing_scores="ignore"), MAE(missing_scores="ignore")):
    values = []
    for scored in (10, 5):
        scores = np.where(np.arange(10) < scored, 4.0, np.nan)
        pair = ItemList(np.arange(10), scores=scores), ItemList(np.arange(10), rating=np.full(10, 3.0))
        values.append((float(metric.measure_list(*pair)), float(metric.global_aggregate([metric.compute_list_data(*pair)]))))
    print(f"{type(metric).__name__}, every error 1: of 10 scored items list {values[0][0]:.4f}, aggregate {values[0][1]:.4f}; of 5 {values[1][0]:.4f}, {values[1][1]:.4f}")
    assert values[0] == (1.0, 1.0) and values[1][0] == 1.0 and values[1][1] < 0.75, "unscored items are left out now"
PY
