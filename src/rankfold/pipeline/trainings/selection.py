"""From the runs of a sweep to its table: mean and deviation over seeds, and the weight decay that is selected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

SELECTED = "weight_decay"


def selection(runs: pd.DataFrame, grid: Sequence[str], figure: str = "accuracy", higher: bool = True) -> pd.DataFrame:
    """One row for each combination of the `grid` keys other than seed, in their order of appearance.

    Columns: those keys, as they are; `runs`, `failed` and `warned`, counts; `validation_mean` and `validation_std` over
    the runs that did not fail (deviation of a sample, NaN for one run); `selected`; `test_mean` and `test_std` of the
    selected rows alone. A run whose validation figure or loss is not finite has failed, as one that ended with an
    error: `Evaluation.rank` calls it worse than anything, too.

    Among rows that differ in weight decay only, the one of best mean validation `figure` is selected, the highest
    unless `higher` is false; rows with failed runs only where there is no other. Equal means: the larger decay. Without
    weight decay in the grid nothing is chosen, and every row with a run that did not fail counts as selected.
    """
    keys = [key for key in grid if key != "seed"]
    judged = [name for name in (f"validation_{figure}", "validation_loss") if name in runs]
    figures = runs.astype(dict.fromkeys((*judged, f"test_{figure}"), "float64")).assign(every=True)
    failed = runs["error"].notna() | ~np.isfinite(figures[judged].to_numpy()).all(axis=1)
    figures.loc[failed, [f"validation_{figure}", f"test_{figure}"]] = float("nan")
    grouped = figures.assign(failed=failed).groupby(keys or ["every"], sort=False, dropna=False)
    table = grouped.agg(
        runs=("directory", "size"),
        failed=("failed", "sum"),
        warned=("warning", "count"),
        validation_mean=(f"validation_{figure}", "mean"),
        validation_std=(f"validation_{figure}", "std"),
        test_mean=(f"test_{figure}", "mean"),
        test_std=(f"test_{figure}", "std"),
    ).reset_index()
    table[keys] = runs[keys].drop_duplicates(ignore_index=True)  # the index of a group has NaN for None
    table = table.drop(columns=[] if keys else ["every"])
    finished = table[table["runs"] > table["failed"]]
    if SELECTED in keys:
        peers = [key for key in keys if key != SELECTED]
        # equal but for rounding is equal
        mean = (finished["validation_mean"] if higher else -finished["validation_mean"]).round(9)
        ranked = finished.assign(whole=finished["failed"] == 0, mean=mean).sort_values(["whole", "mean", SELECTED])
        finished = ranked.groupby(peers, dropna=False).tail(1) if peers else ranked.tail(1)
    table.insert(table.columns.get_loc("test_mean"), "selected", table.index.isin(finished.index))  # type: ignore[arg-type]
    table.loc[~table["selected"], ["test_mean", "test_std"]] = float("nan")  # the test split is not for choosing
    return table
