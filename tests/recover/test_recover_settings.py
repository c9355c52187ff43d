"""Settings of implicit feedback that are out of range are refused by name; a test that was fitted is told."""

import json

import numpy as np
import pytest
from commands import rankfold, succeeded
from scipy.sparse import csr_array as Csr

from rankfold.pipeline.recovery.matching import shared
from rankfold.recover import ImplicitFeedback, map_entries, read_test, read_triplets
from rankfold.recover.implicit.models import regression

PLAYS = [("ann", "a"), ("ann", "b"), ("bob", "a"), ("bob", "b"), ("bob", "c"), ("cid", "c"), ("cid", "d")]


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("neighbours", {"count": 0}, "count must be at least 1, got 0"),
        ("neighbours", {"count": -3}, "count must be at least 1, got -3"),
        ("popularity", {"half_life": 0}, "half_life must be more than 0 days, got 0"),
        ("popularity", {"half_life": float("nan")}, "half_life must be more than 0 days, got nan"),
        ("regression", {"regularization": -5.0}, "regularization must be at least 0, got -5.0"),
        ("als", {"regularization": -100.0}, "regularization must be at least 0, got -100.0"),
        ("als", {"alpha": -1.0}, "alpha must be more than 0, got -1.0"),
        ("als", {"iterations": 0}, "iterations must be at least 1, got 0"),
        ("regression", {"regularization": 0.0}, "the regression of columns is singular: give more than 0 as"),
    ],
)
def test_settings_out_of_range_are_refused(method, setting, message):
    with pytest.raises(ValueError, match=message):
        ImplicitFeedback(method, **setting).fit(PLAYS, times=np.arange(7.0))


@pytest.mark.parametrize("same", range(2, 8))
def test_columns_that_are_alike_have_no_regression_on_each_other(same):
    """Whatever rounding makes of the last pivot."""
    rng = np.random.default_rng(same)
    x = (rng.random((40, 6)) < 0.4) * 1.0
    x = np.column_stack([x, x[:, [same - 2]]])
    with pytest.raises(ValueError, match="singular"):
        regression(Csr(x), 0.0)
    regression(Csr(x), 1e-3)
    assert np.isfinite(regression(Csr(x[:, :6]), 0.0).weights).all()


def test_test_entries_that_were_fitted_too_are_counted_and_told(tmp_path):
    rng = np.random.default_rng(0)
    cells = [(row, column) for row in range(12) for column in range(9)]
    train = [cells[at] for at in rng.permutation(len(cells))[:80]]
    judge = [cells[at] for at in rng.permutation(len(cells))[:30]]
    both = len(set(train) & set(judge))
    for name, some in (("train", [*train, train[0]]), ("test", [*judge, ("new", 0)])):
        lines = "".join(f"u{row},i{column},{1 if row == 'new' else row * column % 5}\n" for row, column in some)
        (tmp_path / f"{name}.csv").write_text("user,item,rating\n" + lines)
    file, test = tmp_path / "train.csv", tmp_path / "test.csv"
    assert 0 < both < len(judge)
    assert shared(read_test(test), read_triplets(file)) == both
    assert shared(read_test(test), map_entries(file, tmp_path / "entries")) == both
    common = ("recover", file, "--methods", "alternating", "--ranks", "1", "--folds", "2", "-o", tmp_path / "out")
    told = f"warning: {both} of the 31 test entries are cells that were also fitted"
    result = rankfold(*common, "--test", test)
    assert told in " ".join(result.stderr.split())
    assert "also fitted" in (tmp_path / "out" / "report.html").read_text()
    done = json.loads((tmp_path / "out" / "recover.json").read_text())["test"]
    assert (done["entries"], done["also_fitted"]) == (31, both)
    test.write_text("user,item,rating\nunew,i0,1\nu1,i1,1\n")
    (tmp_path / "train.csv").write_text(file.read_text().replace("u1,i1,1\n", ""))
    done = succeeded(*common, "--test", test)["test"]
    assert done["also_fitted"] == 0
    assert "warning" not in done
