"""One rule for numbers that are times, wherever they come from; a time for each entry; files that hold none."""

import numpy as np
import pandas as pd
import pytest
from commands import failed, rankfold

from rankfold.recover import ImplicitFeedback, Ratings, fit, read_plays, read_triplets, triplets
from rankfold.recover.choose import Choice
from rankfold.recover.tables.times import as_seconds

SECONDS = [978307200.0, 1600000000.25, 99_999_999_999.0, -12.0]
KINDS = [list, np.array, pd.Series, lambda x: np.array(x, dtype=object), lambda x: [str(each) for each in x]]


@pytest.mark.parametrize("kind", KINDS)
def test_seconds_and_milliseconds_are_told_by_one_rule(tmp_path, kind):
    whole = [978307200000, 1600000000250, 99_999_999_999, -12]
    assert as_seconds(kind(whole), 4).tolist() == SECONDS
    assert as_seconds(kind([float(each) for each in whole]), 4).tolist() == SECONDS
    table = pd.DataFrame({"user": list("abcd"), "item": list("wxyz"), "rating": [1.0, 2, 3, 4], "time": kind(whole)})
    table.to_csv(tmp_path / "e.csv", index=False)
    table.to_parquet(tmp_path / "e.parquet")
    (tmp_path / "lines.csv").write_text(table.to_csv(index=False).replace("\n", "\n\n"))  # read line by line
    for name in ("e.csv", "e.parquet", "lines.csv"):
        assert read_triplets(tmp_path / name, time=True).times.tolist() == SECONDS


def test_what_was_fitted_in_milliseconds_is_predicted_in_milliseconds():
    """As whole numbers they were seconds of the year 52,000, among objects milliseconds."""
    pairs = np.indices((10, 40)).reshape(2, -1).T
    day = np.random.default_rng(0).integers(0, 2, 400)
    times = pd.Series(1_600_000_000_000 + 86_400_000 * day)
    values = 3.0 + np.where(day == pairs[:, 0] % 2, 1.0, -1.0)
    found = Ratings(1, burn_in=10, draws=20).fit(pairs, values, times=times.astype(object))
    told = found.predict(pairs, times=times)
    assert np.sqrt(np.mean((told - values) ** 2)) < 0.3
    assert np.array_equal(told, found.predict(pairs, times=times / 1000))
    assert np.array_equal(told, found.model_.predict(pairs[:, 0], pairs[:, 1], times.to_numpy()))


@pytest.mark.parametrize("given", [[1.6e18, 1.0], np.array([1_600_000_000_000_000_000, 1]), [np.inf, 1.0]])
def test_numbers_that_are_no_times_are_refused(given):
    for times in (given, np.array(given, dtype=object)):
        with pytest.raises(ValueError, match=r"^'(1\.6e\+18|1600000000000000000|inf)' is not a time: give seconds"):
            as_seconds(times, 2)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NaT, pd.NA, np.datetime64("NaT")])
def test_a_time_that_is_missing_is_refused_whatever_uses_it(missing):
    """Popularity of late was NaN then, and recommended nothing."""
    for times in ([1.0, 2.0, missing], np.array([1.0, 2.0, missing], dtype=object), pd.Series([1.0, 2.0, None])):
        for learn in (
            lambda when: triplets(["a", "b", "c"], ["x", "y", "x"], [1, 2, 3], times=when),
            lambda when: Ratings(1).fit([["a", "x"], ["b", "y"], ["c", "x"]], [1, 2, 3], times=when),
            lambda when: ImplicitFeedback("popularity", half_life=3).fit(
                [("a", "x"), ("b", "y"), ("c", "x")], times=when
            ),
        ):
            with pytest.raises(ValueError, match=r"^entry 2: its time is missing: give it, or"):
                learn(times)


def test_a_time_that_is_masked_is_missing():
    masked = np.ma.masked_array([1, 2, 3], mask=[False, True, False])
    with pytest.raises(ValueError, match=r"^entry 1: its time is missing"):
        triplets(["a", "b", "c"], ["x", "y", "x"], [1, 2, 3], times=masked)


def test_a_time_that_is_missing_in_a_file_is_told_with_its_line(tmp_path):
    table = pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "rating": [1, 2], "time": [5.0, np.nan]})
    table.to_csv(tmp_path / "e.csv", index=False)
    table.to_parquet(tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=r"e\.csv, line 3: '' is not a time \(row b, column y\)"):
        read_triplets(tmp_path / "e.csv", time=True)
    with pytest.raises(ValueError, match=r"row 2 of the file: .*time.* \(row b, column y\)"):
        read_triplets(tmp_path / "e.parquet", time=True)


def test_of_a_moment_that_is_not_known_a_loaded_model_still_tells_the_average():
    entries = triplets(["a", "a", "b"], ["x", "y", "x"], [1.0, 2.0, 3.0], times=[1.0, 2.0, 3.0])
    found = fit(entries, Choice("ratings", 1, time=True))[0]
    assert found.predict("a", "x", [None]) == pytest.approx(found.predict("a", "x"))


def test_files_that_hold_no_times_say_so_before_any_work(tmp_path):
    """The error came after all other candidates had been tried, and its advice was to give what had been given."""
    x = np.random.default_rng(0).random((12, 8))
    np.save(tmp_path / "e.npy", x)
    rows, columns = np.indices(x.shape).reshape(2, -1)
    np.savez(tmp_path / "e.npz", rows=rows, columns=columns, values=x.ravel())
    pd.DataFrame(x, index=[f"u{at}" for at in range(12)]).to_csv(tmp_path / "e.csv", index_label="user")
    out, how = tmp_path / "out", "leave --time out (in Python time=True), or give text or Parquet"
    for name in ("e.npz", "e.npy", "e.csv"):
        line = failed("recover", tmp_path / name, "--time", "-o", out)
        assert line.startswith(f"error: {tmp_path / name}")
        assert f"holds no times: {how} with an entry a line and a column of times" in line
        with pytest.raises(ValueError, match="holds no times"):
            read_triplets(tmp_path / name, time=True)
    assert not (out / "recover.json").exists()
    with pytest.raises(ValueError, match="holds no times: leave --split by-time out"):
        read_plays(tmp_path / "e.npz", time=True)
    assert read_plays(tmp_path / "e.npz").times is None
    (tmp_path / "l.csv").write_text(
        "user,item,rating,time\n" + "".join(f"u{at},{at % 8},{at},{at}\n" for at in range(12))
    )
    assert "e.npz holds no times" in failed(
        "recover", tmp_path / "l.csv", "--time", "--test", tmp_path / "e.npz", "-o", out
    )
    assert rankfold("recover", tmp_path / "l.csv", "--time", "--folds", 2, "--ranks", 1, "-o", out).exit_code == 0
