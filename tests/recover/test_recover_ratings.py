"""Ratings beside their times and properties: sums by their definitions, what helps is used, what is asked is stored."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import failed, succeeded
from scipy.sparse import csr_array
from sklearn.model_selection import GridSearchCV

from rankfold.recover import (
    Choice,
    FactorModel,
    LowRank,
    Ratings,
    Sides,
    choices,
    cross_validate,
    fit,
    read_side,
    triplets,
)
from rankfold.recover.measurements.grams import Grams
from rankfold.recover.ratings.moments import Level, Moments


def planted(users=80, items=50, seed=0, mood=0.7):
    """Ratings of rank 2 with biases; each user rates on three days, with a mood of each day; items have genres."""
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(rng.random((users, items)) < 0.4)
    genre = np.arange(items) % 3
    liking = rng.standard_normal((users, 3))
    day = rng.integers(0, 3, len(rows))
    moods = mood * rng.standard_normal((users, 3))
    values = 3 + rng.standard_normal(items)[columns] * 0.3 + 0.5 * liking[rows, genre[columns]] + moods[rows, day]
    values += 0.2 * rng.standard_normal(len(rows))
    times = 1e9 // 86_400 * 86_400 + 86_400.0 * day + rng.integers(0, 86_400, len(rows))
    return triplets(rows, columns, values, times=times), genre


@pytest.mark.parametrize("seed", range(3))
def test_batched_sums_are_the_sums(seed):
    rng = np.random.default_rng(seed)
    dense = (rng.random((40, 30)) < rng.random((40, 1)) ** 2) * 1.0
    table = csr_array(dense)
    known, rest = rng.standard_normal((30, 4)), rng.standard_normal(table.nnz)
    grams, right = Grams(table, 4)(known, rest)
    values = csr_array((rest, table.indices, table.indptr), shape=table.shape).toarray()
    for row in range(40):
        assert np.allclose(grams[row].numpy(), (known * dense[row][:, None]).T @ known, atol=1e-4)
        assert np.allclose(right[row].numpy(), values[row] @ known, atol=1e-4)


def test_offsets_of_moments_are_normal_means():
    rng = np.random.default_rng(0)
    rows, times = rng.integers(0, 5, 400), rng.integers(0, 3, 400) * 86_400.0
    level = Level(rows, times, 86_400.0)
    truth = rng.standard_normal(len(level.keys))
    rest = truth[level.of] + 0.1 * rng.standard_normal(400)
    drawn = []
    for _ in range(200):
        level.resample(rest, 100.0, rng)
        drawn.append(level.offsets)
    assert np.allclose(np.mean(drawn, 0), truth, atol=0.1)
    assert 0.3 < level.precision < 3.0
    moments = Moments((level.keys,) * 3, (truth,) * 3)
    told = Moments((level.keys, *[np.zeros(1, np.int64)] * 2), (truth, *[np.zeros(1)] * 2)).at(rows, times)
    assert np.array_equal(told, truth[level.of])
    assert not moments.at(np.array([-1, 99]), np.array([0.0, 0.0])).any()


def moody(days: int, each: int, seed: int = 0, users: int = 60, items: int = 40) -> tuple[Any, np.ndarray]:
    """Ratings of users on some days, ``each`` a day, with an offset of deviation .8 for every day and noise of .4, and
    their offsets."""
    rng = np.random.default_rng(seed)
    user, day = np.repeat(np.arange(users), days * each), np.tile(np.repeat(np.arange(days), each), users)
    item = np.concatenate([rng.permutation(items)[: days * each] for _ in range(users)])
    moods = 0.8 * rng.standard_normal((users, days))[user, day]
    values = rng.standard_normal(items)[item] + moods + 0.4 * rng.standard_normal(len(user))
    return triplets(user, item, values, times=86_400.0 * day + 600.0 * np.arange(len(user)) % 80_000), moods


def test_a_day_that_is_not_known_is_told_as_uncertain_as_it_is():
    entries, _ = moody(6, 5)
    day = entries.times // 86_400
    learn, new = entries.take(day < 5), entries.take(day == 5)
    model = Ratings(1).fit(learn)
    told, deviation = model.predict(new, return_std=True)
    assert 0.75 < np.mean(((told - new.values) / deviation) ** 2) < 1.3  # without what days differ by it is 3
    half = np.arange(len(learn)) % 2 == 0
    ratios = []
    for seed in range(4):  # one is .70 to .78: of 750 ratings the unit priors of all widths are felt, to the safe side
        told, deviation = (
            Ratings(1, random_state=seed).fit(learn.take(half)).predict(learn.take(~half), return_std=True)
        )
        ratios.append(np.mean(((told - learn.take(~half).values) / deviation) ** 2))
        assert deviation.mean() < 0.8  # of days that are known
    assert 0.7 < np.mean(ratios) < 1.3


def test_moments_that_no_two_ratings_share_are_noise():
    entries, moods = moody(20, 1)
    assert np.isclose(moods.std(), 0.8, atol=0.05)
    model = Ratings(1).fit(entries)
    assert np.isclose(model.noise_, (0.8**2 + 0.4**2) ** 0.5, rtol=0.1)


def test_time_and_side_tables_are_taken_where_they_help_and_left_where_not():
    entries, genre = planted()
    names = [int(name) for name in entries.column_names]
    sides = Sides(None, csr_array(np.eye(3)[genre[names]]))
    tried = choices(["ratings"], [2], entries.shape, time=True, sides=True)
    assert [str(one) for one in tried] == [
        "ratings, rank 2",
        "ratings with side tables, rank 2",
        "ratings with time, rank 2",
        "ratings with time and side tables, rank 2",
    ]
    found = cross_validate(entries, tried, folds=3, seed=0, sides=sides)
    errors = {str(one.choice): one.error for one in found}
    assert found[0].choice.time
    assert errors["ratings with time, rank 2"] < 0.8 * errors["ratings, rank 2"]
    assert errors["ratings with side tables, rank 2"] < errors["ratings, rank 2"]
    calm, _ = planted(mood=0.0)
    errors = {str(one.choice): one.error for one in cross_validate(calm, tried, folds=3, seed=0, sides=sides)}
    assert errors["ratings with time, rank 2"] > 0.97 * errors["ratings, rank 2"]
    with pytest.raises(ValueError, match="need a time for each value"):
        fit(triplets([0, 1], [0, 1], [1.0, 2.0]), Choice("ratings", 1, time=True))
    with pytest.raises(ValueError, match="need one of the rows or of the columns"):
        fit(entries, Choice("ratings", 1, sides=True))


def test_what_is_stored_has_the_rank_that_was_asked_for():
    entries, _ = planted()
    model, rank, how = fit(entries, Choice("ratings", 3, time=True))
    assert (rank, model.rank, model.left.shape[1]) == (3, 3, 5)
    assert "cut to rank 3 beside biases" in how
    same = FactorModel.from_bytes(model.to_bytes())
    assert same.rank == 3
    assert np.array_equal(
        same.at(entries.rows, entries.columns, entries.times), model.at(entries.rows, entries.columns, entries.times)
    )
    assert not np.array_equal(
        model.at(entries.rows, entries.columns, entries.times), model.at(entries.rows, entries.columns)
    )
    # without times the mean of all draws and what is stored are near each other
    draws = np.mean(
        [
            np.einsum("ij,ij->i", a[entries.rows, :-1], b[entries.columns, :-1])
            + a[entries.rows, -1]
            + b[entries.columns, -1]
            for a, b in zip(model.spread.lefts, model.spread.rights, strict=True)
        ],
        0,
    )
    stored = np.einsum("ij,ij->i", model.left[entries.rows], model.right.T[entries.columns])
    assert np.sqrt(np.mean((model.spread.unit * draws - stored) ** 2)) < 0.1
    with pytest.raises(ValueError, match="in no file: fit again"):
        same.uncertainty(np.array([0]), np.array([0]))


def test_uncertainty_is_about_as_large_as_errors_are():
    entries, _ = planted(mood=0.0)
    held = np.random.default_rng(1).random(len(entries)) < 0.3
    pairs = np.column_stack([entries.rows, entries.columns])
    found = Ratings(3).fit(pairs[~held], entries.values[~held])
    told, deviation = found.predict(pairs[held], return_std=True)
    missed = told - entries.values[held]
    assert 0.75 < np.sqrt(np.mean((missed / deviation) ** 2)) < 1.35
    _, stranger = found.predict([["nobody", 0]], return_std=True)
    assert stranger[0] > 1.5 * np.median(deviation)
    with pytest.raises(ValueError, match="entry 0: its time is missing"):
        found.predict([["nobody", 0]], times=[np.nan])


def test_strangers_are_as_uncertain_as_users_and_items_differ():
    """Who rated what tells the users' biases here, so that about what it tells they hardly differ; of a stranger nobody
    has seen it."""
    rng = np.random.default_rng(0)
    kind, taste, quality = rng.standard_normal(260), rng.standard_normal((2, 260)), 0.5 * rng.standard_normal(100)
    chance = 1 / (1 + np.exp(-4 * np.outer(kind, np.arange(100) % 2 - 0.5)))
    rows, columns = np.nonzero(rng.random((260, 100)) < 0.5 * chance)
    values = 3 + kind[rows] + quality[columns] + taste[columns % 2, rows] * 0.3 + 0.3 * rng.standard_normal(len(rows))
    entries = triplets(rows, columns, values, shape=(260, 100))
    new_row, new_column = rows < 60, columns < 20
    learn = entries.take(np.flatnonzero(~new_row & ~new_column))
    model = fit(learn, Choice("ratings", 1))[0]

    def asked(which):
        at = np.where(new_row, -1, rows)[which], np.where(new_column, -1, columns)[which]
        error = model.at(*at) - values[which]
        return np.mean((error / model.uncertainty(*at)) ** 2), np.sqrt(np.mean(model.uncertainty(*at) ** 2))

    known, row, column, both = (
        asked(which)
        for which in (~new_row & ~new_column, new_row & ~new_column, ~new_row & new_column, new_row & new_column)
    )
    assert known[1] < column[1] < row[1] < both[1]
    assert 0.75 < row[0] < 1.3, row
    assert 0.5 < column[0] < 1.6, column  # twenty of them
    assert 0.75 < both[0] < 1.3, both
    nameless = model.at(np.array([0]), np.array([50])), model.uncertainty(np.array([0]), np.array([50]))
    stranger = model.at(np.array([-1]), np.array([50])), model.uncertainty(np.array([-1]), np.array([50]))
    assert np.allclose(nameless, stranger)  # a name without an entry says no more than none


def test_a_stranger_is_like_those_whom_few_ask_for():
    """The best items have the most ratings here: one without any is none of these, though most ratings are of them."""
    rng = np.random.default_rng(0)
    share = np.geomspace(0.02, 0.7, 100)
    rows, columns = np.nonzero(rng.random((200, 100)) < share)
    values = 3 + np.log(share / 0.12)[columns] + 0.3 * rng.standard_normal(len(rows))
    model = fit(triplets(rows, columns, values, shape=(200, 100)), Choice("ratings", 1))[0]
    told = model.at(np.arange(200), np.full(200, -1)).mean()
    assert told < values.mean() - 0.5, (told, values.mean())


def test_side_tables(tmp_path):
    file = tmp_path / "users.csv"
    file.write_text("id|age|sex|name\na|20|F|Ann\nb|30|M|Bob\nc|40||Cid\n")
    features, remarks = read_side(file, ("a", "b", "c", "who"))
    assert features.shape[0] == 4
    assert features.toarray()[3].sum() == 0
    assert remarks == (
        "users.csv, of each row: age, sex, name",
        "1 of 4 rows have no line in users.csv, the first is who",
    )
    with pytest.raises(ValueError, match="none of its 3 names is the name of a row among the entries, such as x"):
        read_side(file, ("x",))
    file.write_text("id,age\na,20\na,30\n")
    with pytest.raises(ValueError, match="line 3: the row a comes twice"):
        read_side(file, ("a",))
    file.write_text("id,age\na,20\nb,20\n")
    with pytest.raises(ValueError, match="none of its columns can be used: each of age"):
        read_side(file, ("a", "b"))
    file.write_text("")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_side(file, ("a", "b"))
    file.write_text("id,age\n")
    with pytest.raises(ValueError, match="no lines below its header"):
        read_side(file, ("a", "b"))
    file.write_text("id,age\na,20,9\nb,30,9\n")
    with pytest.raises(ValueError, match="line 2: there are more fields than in the header"):
        read_side(file, ("a", "b"))


def test_names_of_side_tables_are_text_and_lines_without_one_are_told(tmp_path):
    names = ("7", "NA", "nan")
    table = pd.DataFrame({"id": ["NA", None, "7"], "age": [20.0, 30.0, 40.0]})
    table.to_csv(tmp_path / "users.csv", index=False)
    table.to_parquet(tmp_path / "users.parquet")
    for file in ("users.csv", "users.parquet"):
        features, remarks = read_side(tmp_path / file, names)
        assert features.toarray().any(1).tolist() == [True, True, False]
        assert remarks[-1] == f"1 line of {file} has no row in the first column (the first is line 3): left out"
    pd.DataFrame({"id": [7.0, 8.0], "age": [1, 2]}).to_parquet(tmp_path / "users.parquet")
    assert read_side(tmp_path / "users.parquet", names)[0].toarray().any(1).tolist() == [True, False, False]


def test_the_command_uses_times_and_tables_and_predicts(tmp_path):
    entries, genre = planted(40, 20)
    lines = [
        f"u{entries.row_names[row]},i{entries.column_names[column]},{value:.2f},{when:.0f}"
        for row, column, value, when in zip(entries.rows, entries.columns, entries.values, entries.times, strict=True)
    ]
    file, table, ask = tmp_path / "e.csv", tmp_path / "items.csv", tmp_path / "ask.csv"
    file.write_text("user,item,rating,timestamp\n" + "\n".join(lines[30:]) + "\n")
    table.write_text("item,genre\n" + "".join(f"i{number},g{kind}\n" for number, kind in enumerate(genre)))
    ask.write_text("user,item,timestamp\n" + "".join(f"u{i},i{i % 20},1000000000\n" for i in range(41)))
    out, common = tmp_path / "out", ("--methods", "ratings", "--ranks", "2", "--folds", "2")
    done = succeeded("recover", file, *common, "--time", "--items", table, "--predict", ask, "-o", out)
    assert done["method"] == "ratings"
    assert "time" in done["chosen"]
    told = (out / "predictions.csv").read_text().splitlines()
    assert told[0] == "user,item,time,predicted,uncertainty,unknown"
    assert told[-1].endswith(",row")  # u40
    assert len(told) == 42
    assert float(told[1].split(",")[4]) > 0
    test = tmp_path / "t.csv"
    test.write_text("user,item,rating\nx1,i1,3\nx2,i2,4\n")
    assert "none of the 2 rows to judge by is among the entries, such as 'x1'" in failed(
        "recover", file, *common, "--test", test, "-o", out
    )
    file.write_text("user,item,rating,timestamp\na,b,1,soon\n")
    assert "line 2: 'soon' is not a time (row a, column b)" in failed("recover", file, *common, "--time", "-o", out)


def test_new_rows_are_met_by_known_columns_and_drawn_to_known_rows():
    entries, _ = planted(40, 20)
    late = entries.rows >= 34
    pairs, values = entries.pairs(), entries.values
    model = Ratings(2, burn_in=8, draws=12).fit(pairs[~late], values[~late])
    before, strangers = model.predict(pairs[~late]), model.predict(pairs[late])
    learn = late & (np.arange(len(values)) % 4 > 0)
    held = late & ~learn
    average = model.predict(pairs[held])
    model.partial_fit(pairs[learn], values[learn])
    assert np.array_equal(model.predict(pairs[~late]), before)
    told, deviation = model.predict(pairs[held], return_std=True)
    assert np.mean((told - values[held]) ** 2) < 0.8 * np.mean((average - values[held]) ** 2)
    assert np.isfinite(deviation).all()
    assert len(strangers) == late.sum()
    with pytest.warns(UserWarning, match="1 of 1 ratings are of columns that the fit did not know, such as unheard of"):
        model.partial_fit([["nothing", "unheard of"]], [5.0])
    assert np.allclose(model.predict([["nothing", pairs[0, 1]]]), model.predict([["who", pairs[0, 1]]]))
    with pytest.raises(ValueError, match=f"row {pairs[0, 0]} is already known, and its earlier ratings are not kept"):
        model.partial_fit(pairs[:1], values[:1])


def test_triplets_are_taken_as_they_are_and_split_by_a_search():
    entries, _ = planted(30, 20)
    one = Ratings(2, burn_in=3, draws=3).fit(entries)
    two = Ratings(2, burn_in=3, draws=3).fit(entries.pairs(), entries.values, times=entries.times)
    assert np.array_equal(one.predict(entries), two.predict(entries.pairs(), times=entries.times))
    search = GridSearchCV(Ratings(burn_in=2, draws=2), {"rank": [1, 2]}, cv=2).fit(entries.pairs(), entries.values)
    assert set(search.best_params_) == {"rank"}
    with pytest.raises(ValueError, match="triplets hold their own ratings"):
        Ratings().fit(entries, entries.values)
    with pytest.raises(ValueError, match="pairs need their ratings too"):
        Ratings().fit(entries.pairs())


def test_pairs_given_twice_are_treated_as_the_refusal_advises():
    entries, _ = planted(30, 20)
    pairs, values = np.vstack([entries.pairs(), entries.pairs()[:4]]), np.r_[entries.values, entries.values[:4] + 1]
    with pytest.raises(ValueError, match=r"is given twice, .* in Python duplicates='mean'"):
        Ratings().fit(pairs, values)
    quick = {"burn_in": 2, "draws": 2}
    mean = Ratings(2, duplicates="mean", **quick).fit(pairs, values)
    last = Ratings(2, duplicates="last", **quick).fit(pairs, values)
    for model, added in ((mean, 0.5), (last, 1.0)):
        once = Ratings(2, **quick).fit(entries.pairs(), entries.values + added * (np.arange(len(entries)) < 4))
        assert np.allclose(model.predict(entries.pairs()), once.predict(entries.pairs()))
    with pytest.raises(ValueError, match="duplicates must be"):
        Ratings(duplicates="first").fit(pairs, values)


def test_a_score_over_rows_predicts_what_it_hides():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
    x = np.where(rng.random(truth.shape) < 0.7, truth, np.nan)
    assert LowRank(rank=2).fit(x[:30]).score(x[30:]) > -1e-6
    poor = LowRank(rank=1).fit(x[:30]).score(x[30:])
    assert -np.nanstd(x) < poor < -0.1
    found = GridSearchCV(LowRank(), {"rank": [1, 2]}, cv=3).fit(x)
    assert found.best_params_ == {"rank": 2}
    with pytest.raises(ValueError, match="nothing is known of these rows"):
        found.score(np.full((2, 30), np.nan))
