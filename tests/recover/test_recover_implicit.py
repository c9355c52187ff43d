"""Implicit feedback: figures by their definitions, models by theirs, splits that look into no future."""

import warnings

import numpy as np
import pytest
import scipy.sparse
from commands import failed, rankfold, succeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.pipeline.recovery.advice import same_lists
from rankfold.recover import (
    Candidate,
    ImplicitFeedback,
    candidates,
    choose,
    held_out,
    map_entries,
    read_plays,
    triplets,
)
from rankfold.recover.implicit.als import als
from rankfold.recover.implicit.models import Factors, neighbours, popularity, regression
from rankfold.recover.implicit.ranking import Ranking, judge, paired
from rankfold.recover.implicit.search import Ranked
from rankfold.recover.model import largest

CSR = scipy.sparse.csr_array


def plays(m=80, n=40, groups=4, seed=0, each=8):
    """Triplets of rows in groups that take columns of their own group, with times."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(m), each)
    taken = [rng.choice(np.arange(n // groups) * groups + row % groups, each, replace=False) for row in range(m)]
    times = rng.permutation(len(rows)).astype(float)
    return triplets(rows, np.concatenate(taken), np.ones(len(rows)), shape=(m, n), times=times)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 6))
def test_figures_are_those_of_their_definitions(seed, k):
    rng = np.random.default_rng(seed)
    held = CSR(rng.random((5, 9)) < 0.3)
    users = np.flatnonzero(np.diff(held.indptr))
    if not len(users):
        return
    top = np.array([rng.permutation(9)[:k] for _ in users])
    found = judge(top, held, users, k)
    dense = held.toarray()
    for number, user in enumerate(users):
        hits = [bool(dense[user, column]) for column in top[number]]
        wanted = int(dense[user].sum())
        gain = sum(hit / np.log2(place + 2) for place, hit in enumerate(hits))
        most = sum(1 / np.log2(place + 2) for place in range(min(wanted, k)))
        precision = sum(np.mean(hits[: place + 1]) for place, hit in enumerate(hits) if hit) / min(wanted, k)
        assert found.recall[number] == pytest.approx(sum(hits) / wanted)
        assert found.ndcg[number] == pytest.approx(gain / most)
        assert found.precision[number] == pytest.approx(precision)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 60), count=st.integers(1, 12))
def test_the_largest_are_the_largest_and_in_order(seed, size, count):
    scores = np.random.default_rng(seed).integers(0, 5, (3, size)).astype(float)
    found = largest(scores, count)
    assert np.array_equal(found, np.argsort(-scores, axis=1, kind="stable")[:, :count])  # of equal ones the leftmost


def test_weighted_least_squares_solve_what_they_say():
    rng = np.random.default_rng(0)
    v = rng.standard_normal((3, 12))
    history = CSR(rng.integers(1, 4, (4, 12)) * (rng.random((4, 12)) < 0.7))
    model, dense = Factors(v, 5.0, 0.7), history.toarray()
    for row, x in enumerate(model.rows(history)):
        weight = np.where(dense[row] > 0, 5.0 * dense[row], 1.0)
        target = (dense[row] > 0) * 1.0
        gradient = v @ (weight * (x @ v - target)) + 0.7 * x
        assert np.abs(gradient).max() < 1e-9
        assert np.abs(v @ (weight * (x @ v - target))).max() > 1e-3  # the penalty is part of it


def objective(model, history):
    dense, x = history.toarray(), model.rows(history)
    weight = np.where(dense > 0, model.alpha * dense, 1.0)
    missed = (weight * (x @ model.columns - (dense > 0)) ** 2).sum()
    return missed + model.regularization * ((x**2).sum() + (model.columns**2).sum())


@pytest.mark.parametrize("package", [False, True])
def test_als_by_the_package_and_by_ours_minimise_the_same(monkeypatch, package):
    if package:
        pytest.importorskip("implicit")
    monkeypatch.setattr("rankfold.recover.implicit.als.installed", lambda: package)
    found = plays()
    history = CSR((found.values, (found.rows, found.columns)), shape=found.shape)
    settings_of = {"rank": 4, "alpha": 3.0, "regularization": 0.5, "seed": 0}
    few, many = (objective(als(history, iterations=count, **settings_of), history) for count in (1, 40))
    assert many < few
    assert many == pytest.approx(196.3, rel=0.01)
    nothing = Factors(np.zeros((4, 40)), 3.0, 0.5)
    assert many < 0.3 * objective(nothing, history)


def test_regression_of_columns_is_ridge_regression():
    rng = np.random.default_rng(0)
    x = (rng.random((30, 8)) < 0.4) * 1.0
    weights = regression(CSR(x), 2.0).weights
    for column in range(8):
        others = np.delete(np.arange(8), column)
        gram = x[:, others].T @ x[:, others] + 2.0 * np.eye(7)
        assert np.allclose(weights[others, column], np.linalg.solve(gram, x[:, others].T @ x[:, column]))
        assert weights[column, column] == 0


def test_neighbours_are_cosines_and_only_the_nearest_stay():
    rng = np.random.default_rng(0)
    x = (rng.random((30, 9)) < 0.4) * 1.0
    rarity = np.log(9 / (1 + np.minimum(x.sum(1), 8)))[:, None]
    y = x * rarity / np.linalg.norm(x * rarity, axis=0)
    cosines = y.T @ y - np.eye(9)
    whole = neighbours(CSR(x), 9).weights.toarray()
    assert np.allclose(whole, cosines)
    few = neighbours(CSR(x), 3).weights.toarray()
    assert ((few > 0).sum(1) <= 3).all()
    assert np.allclose(few.max(1), cosines.max(1))


def test_popularity_of_late():
    table = CSR((np.ones(3), ([0, 0, 1], [0, 1, 1])), shape=(2, 3))
    assert popularity(table).weight.round(6).tolist() == [1, 2, 0]
    late = popularity(table, np.array([86_400.0, 0.0, 0.0]), 1.0).weight
    assert late.round(6).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="needs times"):
        popularity(table, None, 1.0)


def test_splits_look_into_no_future():
    entries = plays()
    learn, judged = held_out(entries, "by-time")
    assert learn.times.max() < judged.times.min()
    assert len(judged) == pytest.approx(0.1 * len(entries), abs=1)
    learn, judged = held_out(entries, "leave-one-out")
    assert len(judged) == 80
    for row in range(80):
        assert learn.times[learn.rows == row].max() < judged.times[judged.rows == row].min()
    alone = triplets([0, 1, 1], [0, 0, 1], [1, 1, 1])
    assert held_out(alone, "leave-one-out")[1].rows.tolist() == [1]
    with pytest.raises(ValueError, match="needs times"):
        held_out(alone, "by-time")
    with pytest.raises(ValueError, match="leaves none of the"):
        held_out(triplets([0, 1], [0, 1], [1, 1], times=[0.0, 9.0]), "by-time", fraction=0.4)


@pytest.mark.parametrize("method", ["als", "regression", "neighbours"])
def test_groups_are_found_and_strangers_join_without_a_new_fit(method):
    entries = plays()
    learn, judged = held_out(entries, "leave-one-out")
    model = ImplicitFeedback(method, rank=8, regularization=5.0, count=10).fit(learn)
    hits = sum(
        learn.column_names[column] in dict(model.recommend(row, 3))
        for row, column in zip(judged.rows.tolist(), judged.columns.tolist(), strict=True)
    )
    assert hits > 0.9 * len(judged)  # of ten columns of its group a row took seven: three are unseen
    assert all(int(name) % 4 == 1 for name, _ in model.similar(5, 5))
    with pytest.raises(ValueError, match="row 'nobody' is not among the 80"):
        model.recommend("nobody")
    model.partial_fit([("nobody", 2), ("nobody", 6), ("nobody", "what is that")])
    assert {int(name) % 4 for name, _ in model.recommend("nobody", 5)} == {2}
    before = dict(model.recommend(3, 4))
    first = next(iter(before))
    model.partial_fit([(3, first)])
    assert first not in dict(model.recommend(3, 9))


def test_partial_fit_of_history_sums_counts():
    once = ImplicitFeedback("popularity").fit([("a", "x"), ("a", "y")], [1, 2]).partial_fit([("a", "x")], [4])
    whole = ImplicitFeedback("popularity").fit([("a", "x"), ("a", "y")], [5, 2])
    assert np.allclose(once.history_.toarray(), whole.history_.toarray())


def test_the_best_is_chosen_and_the_baselines_stand_beside():
    entries = plays()
    tried = candidates(entries)
    found = choose(entries, tried, split="leave-one-out")
    assert found.best.method in ("als", "regression", "neighbours")
    assert {one.candidate.method for one in found.tested} >= {"neighbours", "popularity"}
    mean, error = found.differences[-1]
    assert mean > 3 * error
    scores = [one.ranking.ndcg.mean() for one in found.tried]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(ValueError, match="no method 'svd'"):
        choose(entries, [Candidate("svd")], split="leave-one-out")


def test_plays_of_files(tmp_path):
    file = tmp_path / "plays.csv"
    file.write_text("user,item\nann,a\nann,a\nbob,b\n")
    found = read_plays(file)
    assert found.values.tolist() == [2, 1]
    assert found.times is None
    file.write_text("ann\ta\t5\t100\nann\tb\t3\t200\nbob\tb\t4\t300\n")
    found = read_plays(file, at_least=4)
    assert (found.values.tolist(), found.times.tolist()) == ([1, 1], [100, 300])
    with pytest.raises(ValueError, match=r"no value reaches 6 \(--at-least\), as the largest is 5"):
        read_plays(file, at_least=6)
    file.write_text("ann,a,-1\nann,b,3\n")
    with pytest.raises(ValueError, match="the count at row ann, column a is -1"):
        read_plays(file)


def test_the_command_ranks(tmp_path):
    entries = plays()
    order = np.argsort(entries.times)
    lines = [f"u{entries.rows[at]},i{entries.columns[at]},{entries.times[at]:.0f}" for at in order]
    file = tmp_path / "plays.csv"
    file.write_text("user,item,timestamp\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    done = succeeded("recover", file, "--implicit", "--top", "3", "-o", out)
    assert done["split"] == "by-time"
    assert done["tested"][0]["ndcg"] > 0.5
    assert done["ahead"][-1]["of"].startswith("popularity")
    best = (out / "top.csv").read_text().splitlines()
    assert best[0] == "user,item,place"
    assert len(best) == 1 + 3 * 80
    assert not {tuple(line.split(",")[:2]) for line in lines} & {tuple(line.split(",")[:2]) for line in best}
    told = rankfold("recover", file, "--implicit", "--methods", "popularity,neighbours", "-o", out).stdout
    assert "NDCG@10" in told
    assert "chosen: " in told
    assert "implicit feedback: add --implicit" in failed("recover", file, "--columns", "user,item", "-o", out)
    file.write_text("".join(f"u{i},i{j},1\n" for i in range(5) for j in range(5)))
    assert "every value is 1" in failed("recover", file, "-o", out)
    assert "--ranks does not go with --implicit" in rankfold("recover", file, "--implicit", "--ranks", "3").stderr
    assert "--split goes only with --implicit: add --implicit" in rankfold("recover", file, "--split", "by-time").stderr
    file.write_text("ann,a\n")
    assert "leaves none of the" in failed("recover", file, "--implicit", "-o", out)


def test_one_list_for_all_and_ranks_that_add_nothing_are_told():
    figures = np.array([0.5, 0.25])

    def one(method, rank=16, weight=30.0, ndcg=figures):
        users = np.arange(2)
        return Ranked(Candidate(method, rank, 1.0, weight), Ranking(10, users, ndcg, ndcg, ndcg))

    told = same_lists([one("popularity"), one("als"), one("als", 64), one("als", 64, 1.0, 2 * figures)])
    assert "popularity has the same list for every row" in told
    assert "--methods als,regression,neighbours" in told
    assert "als of ranks 16 and 64 rank alike at regularization 30, which leaves fewer than 16 factors" in told
    assert same_lists([one("als"), one("als", 64, ndcg=2 * figures), one("popularity")]) == ""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 70, (1200, 2)), axis=0)
    shrunk = ImplicitFeedback("als", rank=16, regularization=10.0).fit(pairs).model_.columns
    assert np.linalg.svd(shrunk, compute_uv=False)[1] < 1e-3  # so it is: a single factor is left of sixteen


def test_one_row_has_no_standard_error_and_one_moment_no_order(tmp_path):
    held = CSR(np.array([[0.0, 1.0, 1.0]]))
    one = judge(np.array([[1, 0]]), held, np.array([0]), 2)
    assert one.figures()["ndcg_error"] is None
    assert paired(one, one) == (0.0, None)
    entries = triplets([0, 0, 1, 1], [0, 1, 0, 1], np.ones(4), shape=(2, 2), times=np.full(4, 9.0))
    with pytest.raises(ValueError, match=r"all have the same time \(9 seconds since 1970\)"):
        held_out(entries, "by-time")


@pytest.mark.parametrize("beside", [{"y": [5, 7]}, {"times": [1.0, 2.0]}])
def test_what_has_its_own_counts_takes_none_beside_it(tmp_path, beside):
    """They were dropped in silence, and a half-life then asked for the times that had been given."""
    (tmp_path / "p.csv").write_text("user,item,plays\na,x,1\nb,y,1\n")
    files = map_entries(tmp_path / "p.csv", tmp_path / "entries")
    for x, said in (
        (triplets(["a", "b"], ["x", "y"], [1, 1]), "triplets hold their own counts and times"),
        (scipy.sparse.eye_array(2), "a sparse matrix holds its own counts, and times go with pairs"),
        (files, "entries in files hold counts"),
    ):
        with pytest.raises(ValueError, match=f"^{said}: leave y and times out$"):
            ImplicitFeedback("als" if x is files else "popularity", half_life=3).fit(x, **beside)
    found = ImplicitFeedback("neighbours").fit([("a", "x"), ("b", "y")])
    with pytest.raises(ValueError, match="leave y and times out"):
        found.partial_fit(triplets(["c"], ["x"], [1]), [5])
    with pytest.raises(ValueError, match="leave y and times out"):
        found.score(scipy.sparse.eye_array(2), [1, 1])


@pytest.mark.parametrize("fraction", [0, 1.0, 1.5, np.nan])
def test_a_part_that_is_none_is_refused(fraction):
    entries = triplets(["a"] * 5, range(5), np.ones(5), times=[1, 9, 9, 9, 9])
    with pytest.raises(ValueError, match=f"fraction must be between 0 and 1, got {fraction}"):
        held_out(entries, "by-time", fraction=fraction)
    with pytest.raises(ValueError, match=r"^the latest 40 % of the 5 entries all have the same time"):
        held_out(entries, "by-time", fraction=0.4)
    with pytest.raises(ValueError, match="split must be 'by-time' or 'leave-one-out', got 'by time'"):
        held_out(entries, "by time")


def test_a_score_is_the_ndcg_of_what_was_not_taken():
    given = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "z"), ("c", "z")]
    model = ImplicitFeedback("popularity").fit(given)
    assert model.score([("a", "z")]) == 1.0
    assert model.score([("c", "x"), ("c", "y")]) == 1.0
    assert model.score([("a", "z"), ("a", "new")]) == pytest.approx(1 / (1 + 1 / np.log2(3)))
    assert model.score([("a", "x"), ("stranger", "z")]) == 0.0
    assert model.score([("b", "x"), ("a", "z")]) == 1.0


def test_scores_that_shrink_to_nothing_are_told():
    rng = np.random.default_rng(0)
    given = CSR((rng.random((30, 20)) < 0.2) * 1.0)
    with pytest.warns(UserWarning, match="regularization 10 is too large .* such as 1"):
        assert ImplicitFeedback("als", rank=4).fit(given).recommend(0, 1)[0][1] < 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ImplicitFeedback("als", rank=4, regularization=1.0).fit(given).recommend(0, 1)[0][1] > 0.05
