"""What is easily handed over by mistake is answered with the remedy, and never with a result of something else."""

import numpy as np
import pandas as pd
import pytest
from commands import failed, succeeded
from safetensors.numpy import save_file

from rankfold.pipeline.recovery import check_ours
from rankfold.recover import AlternatingMinimization, LowRank, NuclearNorm, triplets

RNG = np.random.default_rng(0)
PAIRS = np.argwhere(RNG.random((12, 9)) < 0.6)
VALUES = (1.0 + PAIRS[:, 0]) * (2.0 + PAIRS[:, 1])


@pytest.mark.parametrize("kind", [LowRank, NuclearNorm, AlternatingMinimization])
def test_pairs_with_their_values_are_no_matrix(kind):
    for pairs in (PAIRS, PAIRS.tolist(), pd.DataFrame(PAIRS), PAIRS.astype(str), PAIRS.astype(float)):
        with pytest.raises(ValueError, match=r"use fit\(triplets\(X\[:, 0\], X\[:, 1\], y\)\), or Ratings"):
            kind().fit(pairs, VALUES)
    told = triplets(PAIRS[:, 0], PAIRS[:, 1], VALUES)
    with pytest.raises(ValueError, match="leave y out"):
        kind().fit(told, VALUES)
    assert LowRank(3).fit(told).rank_ == 1


def test_a_target_of_a_pipeline_is_left_out():
    known = np.where(RNG.random((12, 9)) < 0.7, np.outer(np.arange(1, 13), np.arange(1, 10)), np.nan)
    assert LowRank(2).fit(known, np.arange(12)).rank_ == 1
    two = RNG.random((12, 2))
    assert LowRank(1).fit(two, np.arange(12)).right_.shape == (1, 2)


def test_a_table_of_entries_and_zeros_for_unknown_are_told(recwarn):
    table = pd.DataFrame({"user": PAIRS[:, 0], "item": PAIRS[:, 1], "rating": VALUES})
    wide = table.pivot(index="user", columns="item", values="rating")
    LowRank(2).fit(wide)
    LowRank(2).fit(RNG.random((6, 5)))  # factorization is no mistake
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"nothing is missing from this matrix .*triplets\(rows, columns, values\)"):
        LowRank(2).fit(table)
    with pytest.warns(UserWarning, match="zeros count as known"):
        LowRank(2).fit(wide.mask(RNG.random(wide.shape) < 0.5).fillna(0.0))


@pytest.mark.parametrize("method", ["partial_fit", "transform", "score"])
def test_rows_are_asked_for_where_triplets_have_no_rows_of_the_fit(method):
    told = triplets(PAIRS[:, 0], PAIRS[:, 1], VALUES)
    found = LowRank(2).fit(told)
    with pytest.raises(ValueError, match=r"takes whole rows of the matrix here.*NaN"):
        getattr(found, method)(told)


@pytest.mark.parametrize("name", ["max_rank", "rank", "tol", "max_iter", "validation_fraction"])
def test_settings_that_are_no_numbers_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be a number, got '3'"):
        LowRank(**{name: "3"}).fit(triplets(PAIRS[:, 0], PAIRS[:, 1], VALUES))


@pytest.mark.parametrize("name", ["factors.safetensors", "report.html", "recover.json"])
def test_files_of_somebody_else_are_not_replaced(tmp_path, name):
    save_file({"weight": np.ones(3)}, tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is there already, and rankfold did not write it"):
        check_ours(tmp_path)


def test_results_of_its_own_are_replaced_and_other_files_stay(tmp_path):
    file, out = tmp_path / "r.csv", tmp_path / "out"
    pd.DataFrame({"user": PAIRS[:, 0], "item": PAIRS[:, 1], "rating": VALUES}).to_csv(file, index=False)
    out.mkdir()
    (out / "top.csv").write_text("mine")
    told = failed("recover", tmp_path / "absent.csv", "--top", "1", "-o", out)
    assert "top.csv is there already" in told  # before anything is read
    succeeded("recover", file, "--methods", "low-rank", "--ranks", "2", "--folds", "2", "-o", out)
    assert (out / "top.csv").read_text() == "mine"
    check_ours(out, "top.csv")
    (out / "recover.json").unlink()  # as where it was interrupted after the factors
    check_ours(out)
    with pytest.raises(ValueError, match="is a file: give a directory"):
        check_ours(file)


@pytest.mark.parametrize("kind", ["datetime64[s]", "timedelta64[s]"])
def test_dates_are_no_numbers(kind):
    """NumPy would turn them into numbers of seconds since 1970 without a word."""
    dates = np.arange(12, dtype="int64").reshape(3, 4).astype(kind)
    for matrix in (dates, pd.DataFrame(dates), pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": dates[:, 0]})):
        with pytest.raises(ValueError, match="these are dates or durations"):
            LowRank(rank=1).fit(matrix)
    with pytest.raises(ValueError, match="these are dates or durations"):
        triplets([0, 1, 2], [0, 1, 0], dates[:, 0])
