"""Entries from files: every fault is named; ratings, factors and the command line."""

import json

import numpy as np
import pytest
import scipy.sparse
from commands import failed, rankfold, succeeded

from rankfold.recover import (
    Choice,
    FactorModel,
    Gaussian,
    Ratings,
    choices,
    cross_validate,
    fit,
    read_triplets,
    triplets,
)
from rankfold.recover.model import narrowed


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def planted(users=60, items=40, seed=0, fraction=0.5):
    """Ratings from 1 to 5 with biases and rank 2, and noise of 0.3."""
    rng = np.random.default_rng(seed)
    bias = 3.5 + 0.5 * rng.standard_normal((users, 1)) + 0.5 * rng.standard_normal(items)
    truth = bias + 0.5 * rng.standard_normal((users, 2)) @ rng.standard_normal((2, items))
    rows, columns = np.nonzero(rng.random((users, items)) < fraction)
    values = np.clip(truth[rows, columns] + 0.3 * rng.standard_normal(len(rows)), 1, 5)
    return rows, columns, values, np.clip(truth, 1, 5)


@pytest.mark.parametrize(
    "text",
    [
        "user,item,rating\nann,b1,5\nbob,b2,3.5\n",
        "ann;b1;5;1999\nbob;b2;3.5;2000\n",
        "ann\tb1\t5\t881250949\nbob\tb2\t3.5\t881250949\n",
        '"ann","b1",5\n\n"bob","b2",3.5\n',
    ],
)
def test_formats_of_text(tmp_path, text):
    found = read_triplets(write(tmp_path / "e.csv", text))
    assert found.row_names == ("ann", "bob")
    assert found.column_names == ("b1", "b2")
    assert found.values.tolist() == [5, 3.5]


def test_numbers_as_names_are_in_numeric_order(tmp_path):
    found = read_triplets(write(tmp_path / "u.data", "10\t1\t3\t0\n9\t2\t4\t0\n"))
    assert found.row_names == ("9", "10")
    assert found.rows.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,1\na,c\n", "line 2: 2 of 3 fields; is the file cut short"),
        ("a,b,1\na,c,\n", r"line 2: the value is missing \(row a, column c\)"),
        ("a,b,1\na,c,good\n", r"line 2: 'good' is not a number \(row a, column c\)"),
        ("a,b,1\na,c,nan\n", r"line 2: the value is nan \(row a, column c\)"),
        ("a,b,1\na,c,inf\n", r"line 2: the value is inf \(row a, column c\)"),
        ("a,b,1\n,c,2\n", "line 2: the row is missing"),
        ("a,b,1\na,b,2\n", "the entry at row a, column b is given twice, as 1 and 2"),
        ("", "there are no entries"),
    ],
)
def test_faults_name_line_row_and_column(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_triplets(write(tmp_path / "e.csv", text))


def test_duplicates_as_asked(tmp_path):
    file = write(tmp_path / "e.csv", "a,b,1\na,c,7\na,b,2\n")
    assert read_triplets(file, duplicates="mean").values.tolist() == [1.5, 7]
    assert read_triplets(file, duplicates="last").values.tolist() == [2, 7]
    same = read_triplets(write(tmp_path / "f.csv", "a,b,1\na,b,1\n"))
    assert len(same) == 1
    assert "1 duplicate entries, the first at row a, column b" in same.remarks[0]


def test_arrays_and_their_faults(tmp_path):
    with pytest.raises(ValueError, match="entry 1: row 7 is not within 0 … 2"):
        triplets(np.array([0, 7]), np.array([0, 1]), [1.0, 2.0], shape=(3, 2))
    with pytest.raises(ValueError, match="value at row 1, column 0 is nan"):
        triplets(np.array([0, 1]), np.array([0, 0]), [1.0, np.nan])
    with pytest.raises(ValueError, match="as many of each"):
        triplets(np.array([0, 1]), np.array([0]), [1.0, 2.0])
    empty = triplets(np.array([0, 2]), np.array([0, 1]), [1.0, 2.0], shape=(3, 2))
    assert "1 rows have no entry, 1 the first" in empty.remarks[0]
    x = np.array([[1.0, np.nan], [np.nan, 2.0]])
    np.savez(tmp_path / "x.npz", X=x)
    assert read_triplets(tmp_path / "x.npz").values.tolist() == [1, 2]
    for kind in ("csr", "coo", "csc"):
        scipy.sparse.save_npz(tmp_path / "s.npz", scipy.sparse.coo_array(np.nan_to_num(x)).asformat(kind))
        assert read_triplets(tmp_path / "s.npz").shape == (2, 2)
    np.savez(tmp_path / "r.npz", rows=[0, 1], columns=[0, 9], values=[1.0, 2.0], shape=[2, 2])
    with pytest.raises(ValueError, match="entry 1: column 9 is not within"):
        read_triplets(tmp_path / "r.npz")
    whole = (tmp_path / "r.npz").read_bytes()
    (tmp_path / "r.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        read_triplets(tmp_path / "r.npz")


def test_ratings_learn_biases_factors_and_know_strangers():
    rows, columns, values, truth = planted()
    pairs = np.column_stack([rows, columns])
    held = np.random.default_rng(1).random(len(values)) < 0.2
    found = Ratings(4, burn_in=20, draws=40).fit(pairs[~held], values[~held])
    error = np.sqrt(np.mean((found.predict(pairs[held]) - truth[rows[held], columns[held]]) ** 2))
    mean = values[~held].mean()
    assert error < 0.35
    assert error < 0.5 * np.sqrt(np.mean((mean - truth[rows[held], columns[held]]) ** 2))
    assert found.noise_ == pytest.approx(0.3, abs=0.1)
    assert found.converged_, found.reason_
    strangers = found.predict([["nobody", 3], [5, "nothing"], ["nobody", "nothing"]])
    assert np.isfinite(strangers).all()
    assert strangers[2] == pytest.approx(values.mean(), abs=0.5)
    again = Ratings(4, burn_in=20, draws=40).fit(pairs[~held], values[~held])
    assert np.array_equal(found.predict(pairs), again.predict(pairs))


def test_narrow_factors_are_the_same_product():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((9, 3)), rng.standard_normal((3, 7))
    wide = np.hstack([left, left]) / 2, np.vstack([right, right])
    a, b = narrowed(*wide)
    assert a.shape[1] == 3
    assert np.allclose(a @ b, left @ right)


def test_factors_come_back_from_their_file():
    rng = np.random.default_rng(0)
    names = (("ann", "bob"), ("x", "y", "ü"))
    model = FactorModel(rng.standard_normal((3, 2)), rng.standard_normal((2, 4)), 3.0, 1.0, 5.0, *names)
    same = FactorModel.from_bytes(model.to_bytes())
    assert np.array_equal(same.predict(["ann", "who"], ["ü", "x"]), model.predict(["ann", "who"], ["ü", "x"]))
    assert len(same.top("bob", 2, without=[0])) == 2
    with pytest.raises(ValueError, match="not factors saved by rankfold"):
        FactorModel.from_bytes(model.to_bytes()[:50])


def test_cross_validation_prefers_the_right_method():
    rows, columns, values, _ = planted()
    entries = triplets(rows, columns, values)
    tried = cross_validate(entries, choices(["ratings", "low-rank"], [3], entries.shape), folds=2, seed=0)
    assert tried[0].choice.method == "ratings"
    assert tried[0].error < tried[1].error
    exact = np.random.default_rng(0).standard_normal((30, 2)) @ np.random.default_rng(1).standard_normal((2, 25))
    known = np.random.default_rng(2).random(exact.shape) < 0.9
    rows, columns = np.nonzero(known)
    tried = cross_validate(
        triplets(rows, columns, exact[known]), choices(["ratings", "low-rank"], [4], exact.shape), folds=2, seed=0
    )
    assert tried[0].choice.method == "low-rank"
    assert tried[0].rank == 2
    assert tried[0].error < 1e-6
    with pytest.raises(ValueError, match="no method 'svd'"):
        choices(["svd"], None, (3, 3))


def test_every_method_fits_and_predicts_for_those_without_entries():
    rows, columns, values, _ = planted(20, 15)
    entries = triplets(rows, columns, values, shape=(21, 16))
    for method in ("low-rank", "ratings", "compressed-deep-linear", "alternating", "nuclear", "scaled-gd"):
        model, _, remark = fit(entries, Choice(method, 2))
        assert np.isfinite(model.at(np.array([20, 0, -1]), np.array([15, 15, -1]))).all(), method
        assert remark
    with pytest.raises(ValueError, match="rank 30 is not within 1 … 16"):
        fit(entries, Choice("alternating", 30))


def test_command_completes_and_judges(tmp_path):
    rows, columns, values, _ = planted(25, 20)
    lines = [f"u{r},i{c},{v:.3f}" for r, c, v in zip(rows, columns, values, strict=True)]
    np.random.default_rng(0).shuffle(lines)
    file = write(tmp_path / "e.csv", "user,item,rating\n" + "\n".join(lines[:-30]) + "\n")
    test = write(tmp_path / "t.csv", "\n".join([*lines[-30:], "stranger,i1,3"]) + "\n")
    out = tmp_path / "out"
    done = succeeded("recover", file, "--test", test, "--ranks", "2", "--folds", "2", "--top", "2", "-o", out)
    assert done["test"]["unknown_rows"] == 1
    assert done["test"]["error"] < 1
    assert done["held_out_error"] == min(one["error"] for one in done["tried"])
    assert json.loads((out / "recover.json").read_text(encoding="utf-8"))["chosen"] == done["chosen"]
    model = FactorModel.from_bytes((out / "factors.safetensors").read_bytes())
    assert np.isfinite(model.predict(["u1"], ["i1"])).all()
    best = (out / "top.csv").read_text(encoding="utf-8").splitlines()
    seen = {tuple(line.split(",")[:2]) for line in lines[:-30]}
    assert best[0] == "row,column,predicted"
    assert not seen & {tuple(line.split(",")[:2]) for line in best[1:]}
    assert (out / "cross-validation.svg").stat().st_size > 0


def test_command_senses(tmp_path):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((12, 2)), rng.standard_normal((2, 10))
    y = Gaussian((12, 10), 100, 7, np.empty(0)).push(left, right)
    np.savez(tmp_path / "s.npz", y=y, seed=7, count=100, shape=[12, 10])
    done = succeeded("recover", tmp_path / "s.npz", "-o", tmp_path / "out")
    assert done["rank"] == 2
    assert done["converged"]
    np.savez(
        tmp_path / "a.npz", y=y, A=np.stack([Gaussian((12, 10), 100, 7, np.empty(0)).matrix(i) for i in range(100)])
    )
    same = succeeded("recover", tmp_path / "a.npz", "-o", tmp_path / "out")
    assert np.allclose(same["singular_values"], done["singular_values"])
    np.savez(tmp_path / "b.npz", y=y)
    assert "need their matrices A" in failed("recover", tmp_path / "b.npz")


def test_command_refuses_in_one_line(tmp_path):
    file = write(tmp_path / "e.csv", "a,b,1\na,c,2\nd,b,x\n")
    assert "line 3: 'x' is not a number (row d, column b)" in failed("recover", file)
    good = write(tmp_path / "g.csv", "a,b,1\na,c,2\nd,b,3\nd,c,4\n")
    command = ("recover", good, "--methods", "alternating", "--ranks", "9", "-o", tmp_path / "o")
    assert "rank 9 is not within 1 … 2, what 2 rows and 2 columns allow" in failed(*command)
    assert "no method 'svd'" in rankfold("recover", good, "--methods", "svd").stderr
    assert "5 folds of 4 entries" in failed("recover", good, "-o", tmp_path / "o")
    assert "No such file" in failed("recover", tmp_path / "none.csv")
