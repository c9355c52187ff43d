"""Plays of files and tables: nothing is no play, what is new is new once, and faults of lines are told."""

import numpy as np
import pytest
import scipy.sparse
from commands import failed, succeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.recover import (
    Candidate,
    ImplicitFeedback,
    choose,
    held_out,
    map_entries,
    read_plays,
    read_triplets,
    triplets,
)
from rankfold.recover.implicit.candidates import trained

LINES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=30
)


def write(path, text):
    path.write_text(text)
    return path


def table(shape=(20, 8), seed=0):
    """All users and items, most of which nobody took; of the last item all."""
    counts = (np.random.default_rng(seed).random(shape) < 0.3).astype(float)
    counts[:, -1] = 0
    return counts


@pytest.mark.parametrize("method", ["als", "regression", "neighbours", "popularity"])
def test_counts_of_zero_are_no_plays(tmp_path, method):
    counts = table()
    pairs = np.argwhere(counts >= 0)
    taken = np.argwhere(counts > 0)
    some = {"rank": 3, "regularization": 1.0, "count": 3, "iterations": 300}
    bare = triplets(taken[:, 0], taken[:, 1], np.ones(len(taken)), shape=counts.shape)
    wanted = ImplicitFeedback(method, **some).fit(bare)
    lines = "".join(f"{row},{column},{counts[row, column]:.0f}\n" for row, column in pairs)
    file = write(tmp_path / "p.csv", "user,item,plays\n" + lines)
    stored = scipy.sparse.coo_array((counts.ravel(), (pairs[:, 0], pairs[:, 1])), shape=counts.shape)
    given_as = [(pairs, counts.ravel()), (stored, None), (read_triplets(file), None)]
    if method == "als":
        given_as.append((map_entries(file, tmp_path / "entries"), None))
    for x, y in given_as:
        found = ImplicitFeedback(method, **some).fit(x, y)
        assert len(found.row_names_) == 20
        for row in range(20):
            told, best = dict(found.recommend(row, 8)), dict(wanted.recommend(row, 8))
            assert set(told) == {str(column) for column in np.flatnonzero(counts[row] == 0)}
            assert told == pytest.approx(best, abs=1e-3)


def test_a_full_table_of_counts_is_ranked_by_what_was_taken(tmp_path):
    counts = table((40, 12))
    lines = "".join(f"u{row},i{column},{count:.0f}\n" for (row, column), count in np.ndenumerate(counts))
    file = write(tmp_path / "p.csv", "user,item,plays\n" + lines)
    found = read_plays(file)
    assert (found.shape, len(found)) == ((40, 12), int(counts.sum()))
    assert found.remarks[-1] == f"{int((counts == 0).sum())} counts are 0 and are left out"
    done = succeeded("recover", file, "--implicit", "--methods", "popularity", "--top", "3", "-o", tmp_path / "out")
    assert done["entries"] == int(counts.sum())
    assert done["tested"][0]["ndcg"] < 0.9
    assert len((tmp_path / "out" / "top.csv").read_text().splitlines()) == 1 + 3 * 40
    write(file, "user,item,plays\na,x,0\nb,y,0\n")
    assert "every count is 0, and says that nothing was taken" in failed("recover", file, "--implicit")
    with pytest.raises(ValueError, match="every count is 0"):
        ImplicitFeedback("popularity").fit([("a", "x")], [0])


@settings(max_examples=80, deadline=None)
@given(lines=LINES)
def test_by_time_what_is_held_out_is_new_and_what_is_learnt_is_earlier(lines):
    rows, columns, counts, times = (np.array(one, float) for one in zip(*lines, strict=True))
    counts += 1
    at = rows.astype(int), columns.astype(int)
    entries = triplets(*at, counts, shape=(4, 4), times=times, duplicates="sum")
    try:
        learn, held = held_out(entries, "by-time", fraction=0.3)
    except ValueError:
        return
    first = {}
    for row, column, when in zip(*at, times, strict=True):
        first[row, column] = min(first.get((row, column), np.inf), when)
    moment = sorted(first.values())[int(np.floor(0.7 * (len(first) - 1) + 1e-9))]
    assert set(zip(held.rows, held.columns, strict=True)) == {cell for cell, when in first.items() if when > moment}
    known = {}
    for row, column, count, when in zip(*at, counts, times, strict=True):
        if when <= moment:
            before = known.get((row, column), (0, -np.inf))
            known[row, column] = (before[0] + count, max(before[1], when))
    told = zip(learn.rows, learn.columns, learn.values, learn.times, strict=True)
    assert {(row, column): (count, when) for row, column, count, when in told} == known


def replays(users=40, items=30, each=8):
    """Lines of users who take columns of their own, the first of them again at the end, and nothing else."""
    rng = np.random.default_rng(0)
    lines = []
    for user in range(users):
        mine = rng.choice(items, each, replace=False)
        lines += [(user, item, place) for place, item in enumerate(mine)] + [(user, mine[0], 1000 + user)]
    return lines


def test_what_was_taken_before_is_nothing_new(tmp_path):
    lines = replays()
    head = "user,item,timestamp\n"
    file = write(tmp_path / "p.csv", head + "".join(f"u{row},i{column},{when}\n" for row, column, when in lines))
    entries = read_plays(file)
    with pytest.raises(ValueError, match=r"nothing new was taken in the last tenth: whatever comes after 7 seconds"):
        held_out(entries, "by-time")
    assert "nothing new was taken in the last tenth" in failed("recover", file, "--implicit")
    first = {row: max(place for user, _, place in lines if user == row and place < 1000) for row in range(40)}
    _, judged = held_out(entries, "leave-one-out")
    assert judged.times.tolist() == [first[0]] * 40
    spread = [(row, column, when if when >= 1000 else when + row / 100) for row, column, when in lines]
    rows, columns, times = zip(*spread, strict=True)
    entries = triplets(rows, columns, np.ones(len(rows)), times=times, duplicates="sum")
    learn, judged = held_out(entries, "by-time")
    assert judged.times.min() > learn.times.max()
    assert not {*map(tuple, judged.pairs())} & {*map(tuple, learn.pairs())}
    some = entries.take(np.flatnonzero(entries.rows % 2 == 0))  # of these alone, also of what was given
    learn, judged = held_out(some, "by-time")
    assert not np.any(np.r_[learn.rows, judged.rows] % 2)
    assert len(learn) + len(judged) == len(some)
    chosen = choose(entries, [Candidate("popularity"), Candidate("neighbours", count=3)], split="by-time")
    assert chosen.split == "by-time"


def test_popularity_of_late_is_by_the_last_time_of_each_row():
    day = 86_400.0
    entries = triplets(["a", "a", "b"], ["x", "x", "y"], [1, 1, 1], times=[0.0, 2 * day, day], duplicates="sum")
    assert trained(entries, Candidate("popularity", half_life=1.0)).weight.round(6).tolist() == [1, 0.5]


def test_the_least_value_is_asked_of_lines(tmp_path):
    file = write(tmp_path / "p.csv", "user,item,rating\na,x,2\na,x,2\na,y,5\nb,x,5\nb,x,4\nb,y,5\nb,y,1\n")
    for duplicates, counts in (("sum", [1, 2, 1]), ("mean", [1, 1, 1]), ("last", [1, 1, 1])):
        found = read_plays(file, at_least=4, duplicates=duplicates)
        assert found.pairs().tolist() == [["a", "y"], ["b", "x"], ["b", "y"]]
        assert found.values.tolist() == counts
        assert "4 of 7 values are at least 4 and count one each" in found.remarks
    with pytest.raises(ValueError, match=r"is given twice, as 5 \(line 5\) and 4 \(line 6\)"):
        read_plays(file, at_least=4, duplicates="refuse")


def test_implicit_lines_are_summed_unless_something_else_is_asked(tmp_path):
    bare = write(tmp_path / "i.csv", "user,item\na,x\na,x\na,x\nb,y\n")
    counts = write(tmp_path / "c.csv", "user,item,plays\na,x,2\na,x,3\nb,y,1\n")
    for file, sums in ((bare, [3, 1]), (counts, [5, 1])):
        assert read_triplets(file, implicit=True).values.tolist() == sums
        mapped = map_entries(file, tmp_path / file.stem, implicit=True)
        assert mapped.take(np.arange(2)).values.tolist() == sums
    with pytest.raises(ValueError, match="is given twice"):
        read_triplets(counts, implicit=True, duplicates="refuse")
    with pytest.raises(ValueError, match="is given twice"):
        read_triplets(counts)


def test_a_wrong_time_is_told_and_what_is_no_time_is_ignored(tmp_path):
    file = write(tmp_path / "q.csv", "user,item,timestamp\na,x,2001-02-28\na,y,2001-02-29\nb,x,2001-03-01\n")
    with pytest.raises(ValueError, match=r"line 3: '2001-02-29' is not a time \(row a, column y\)"):
        read_plays(file)
    assert read_plays(file, time=False).times is None
    write(file, "a,x,1,100\na,y,1,soon\n")
    with pytest.raises(ValueError, match="line 2: 'soon' is not a time"):
        read_plays(file)
    assert read_plays(write(file, "a,x,1,soon\na,y,1,late\n")).times is None
    assert read_plays(write(file, "user,item,plays,city\na,x,1,Rome\n")).times is None
    assert read_plays(file, columns="user,item,plays,city").times is None
    assert read_plays(write(file, "a,x,1,100\na,y,1,200\n")).times.tolist() == [100, 200]
