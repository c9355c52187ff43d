"""Dates are names too: one text for one date, whichever library it is of, and none that is missing."""

import decimal
from datetime import date, datetime

import numpy as np
import pandas as pd
import pytest

from rankfold.recover import Choice, FactorModel, Ratings, fit, read_triplets, triplets

DAYS = pd.Series(pd.date_range("2020-01-01", periods=6))
HOURS = DAYS + pd.Timedelta("12:30:00")
ROWS, COLUMNS, VALUES = np.repeat(np.arange(6), 4), np.tile(np.arange(4), 6), np.arange(24.0)
KINDS = [
    list,
    np.asarray,
    pd.DatetimeIndex,
    lambda days: days.to_numpy().astype("datetime64[us]"),
    lambda days: days.to_numpy().astype("datetime64[m]"),
    lambda days: [day.to_pydatetime() for day in days],
    lambda days: days.astype(str),
]


@pytest.mark.parametrize(("days", "first"), [(DAYS, "2020-01-01"), (HOURS, "2020-01-01 12:30:00")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_date_is_one_name_whichever_library_it_is_of(kind, days, first):
    known = triplets(days[ROWS], COLUMNS, VALUES)
    assert known.row_names[0] == first
    assert triplets(kind(days[ROWS]), COLUMNS, VALUES).row_names == known.row_names
    model = fit(known, Choice("low-rank", 2))[0]
    assert model.indices(kind(days), [0] * 6)[0].tolist() == list(range(6))
    assert model.predict(list(kind(days))[2], 3) == pytest.approx(11.0)
    assert len(set(triplets(list(days) + list(kind(days)), np.arange(12), np.ones(12)).row_names)) == 6


def test_days_without_a_time_and_dates_of_a_file_are_the_same_names(tmp_path):
    assert triplets([date(2020, 1, 1), datetime(2020, 1, 1)], [0, 1], [1.0, 2.0]).row_names == ("2020-01-01",)
    table = pd.DataFrame({"user": DAYS[ROWS].to_numpy(), "item": COLUMNS, "rating": VALUES})
    table.to_parquet(tmp_path / "d.parquet")
    table.to_csv(tmp_path / "d.csv", index=False)
    told = [read_triplets(tmp_path / name).row_names for name in ("d.parquet", "d.csv")]
    assert told[0] == told[1] == triplets(table["user"], table["item"], table["rating"]).row_names


def test_the_dates_that_were_fitted_are_known():
    found = Ratings(1, burn_in=5, draws=10).fit(pd.DataFrame({"day": DAYS[ROWS], "item": COLUMNS}), VALUES)
    asked = [[day, 1] for day in DAYS]
    assert np.ptp(found.predict(asked)) > 5
    assert np.array_equal(found.predict(asked), found.predict([[f"{day.date()}", 1] for day in DAYS]))


@pytest.mark.parametrize("kind", [pd.DataFrame, lambda pairs: pd.DataFrame(pairs).to_numpy(), tuple])
def test_pairs_of_dates_alone_are_known_too(kind):
    """As an array they are of NumPy's dates, of which a list is one of numbers of nanoseconds."""
    starts, ends = (days.to_numpy().astype("datetime64[ns]") for days in (DAYS[ROWS], HOURS[COLUMNS]))
    pairs = kind({"start": starts, "end": ends} if kind is not tuple else zip(DAYS[ROWS], HOURS[COLUMNS], strict=True))
    found = Ratings(1, burn_in=5, draws=10).fit(pairs, VALUES)
    assert found.model_.row_names[0] == "2020-01-01"
    asked = [[str(start)[:10], f"{str(end)[:10]} 12:30:00"] for start, end in zip(starts, ends, strict=True)]
    assert np.array_equal(found.predict(pairs), found.predict(asked))
    assert np.corrcoef(found.predict(pairs), VALUES)[0, 1] > 0.95


@pytest.mark.parametrize(
    "day", [np.datetime64("20000-01-01"), np.datetime64("-5000-01-01"), pd.Timestamp(1, unit="ns")]
)
def test_moments_beyond_the_calendar_and_finer_than_microseconds_have_names(day):
    model = fit(triplets([day, "other", day], ["x", "x", "y"], [1.0, 2.0, 3.0]), Choice("low-rank", 1))[0]
    assert model.indices(day, "y")[0] >= 0
    assert model.indices(pd.Timestamp(0), "y")[0] == -1


def test_names_that_were_stored_in_another_form_still_answer():
    model = fit(triplets(["2020-01-01T00:00:00.000000", "b"], ["x", "x"], [1.0, 2.0]), Choice("low-rank", 1))[0]
    model = FactorModel.from_bytes(model.to_bytes())
    assert model.predict("2020-01-01T00:00:00.000000", "x") == pytest.approx([1.0])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NaT, pd.NA, np.datetime64("NaT"), decimal.Decimal("NaN")])
def test_a_name_that_is_missing_is_told(missing):
    model = fit(triplets(["NaT", "nan", "None"], ["x", "x", "y"], [1.0, 2.0, 3.0]), Choice("low-rank", 1))[0]
    with pytest.raises(ValueError, match="name 1 is missing"):
        model.predict(["NaT", missing], "x")
    with pytest.raises(ValueError, match="name 0 is missing"):
        model.predict(missing, "x")
    with pytest.raises(ValueError, match="entry 1: the row is missing"):
        triplets(np.array(["a", missing], dtype=object), [0, 1], [1.0, 2.0])
    assert (model.indices(["NaT", "nan"], "x")[0] >= 0).all()  # texts are names


def test_a_date_that_is_missing_is_told():
    for days in (np.array(["2020-01-01", "NaT"], "M8[D]"), pd.Series(pd.to_datetime(["2020-01-01", None]))):
        with pytest.raises(ValueError, match=r"entry 1: the row is missing \(NaT\)"):
            triplets(days, [0, 1], [1.0, 2.0])
        with pytest.raises(ValueError, match="name 1 is missing"):
            fit(triplets(["a", "b"], [0, 1], [1.0, 2.0]), Choice("low-rank", 1))[0].predict(days, [0, 1])
