"""Entries from files: every fault is named; ratings, factors and the command line."""

import json
import zipfile

import numpy as np
import pytest
import scipy.sparse
from commands import failed, rankfold, succeeded

from rankfold.cli.recovered import print_recovered
from rankfold.pipeline.recovery.completing import complete
from rankfold.pipeline.recovery.page import factors
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
        (
            "a,b,1\na,c\n",
            r"line 2: there are 2 of 3 fields; is the file cut short\? The order is row, column, value; there is no",
        ),
        ("a,b,1\na,c,good\n", r"line 2: 'good' is not a number \(row a, column c\); the order is row, column, value;"),
        (
            "item,user,time,rating\nb,a,0,good\n",
            r"line 2: 'good' is not a number \(row a, column b\); "
            "by the header user is the row, item the column, rating the value",
        ),
        ("1,2,four\n1,3,5\n", r"line 1: 'four' is not a number \(row 1, column 2\)"),
        (
            "user;item;rating\na;b;3,5\n",
            r"line 2: '3,5' is not a number: write decimals with a point \(row a, column b\)",
        ),
        ("a;b;3,5\nc;b;1,5\n", r"line 1: '3,5' is not a number: write decimals with a point"),
        (
            "user,item,rating\na;b;3,5\n",
            "line 2: the delimiter of line 1, ',', makes 2 of 3 fields here, and ';' makes three",
        ),
        (
            "user,item,rating\na,b,3,5\n",
            "line 2: there are 4 fields, and 3 in line 1: is there a ',' within a name or a numb",
        ),
        ("item,score\n", "line 1: there are 2 fields, and three are needed"),
        ("item,time,\n", "can be the value"),
        ("a,b,1\na,c,inf\n", r"line 2: the value is inf \(row a, column c\)"),
        ("a,b,1\n,c,2\n", "line 2: the row is missing"),
        ("a,b,1\na,c,7\na,b,2\n", r"row a, column b is given twice, as 1 \(line 1\) and 2 \(line 3\): .*--duplicates"),
        ("a,b,1\na,b,1\na,b,3\n", r"as 1 \(line 2\) and 3 \(line 3\)"),
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        ("user,item,rating\n", "there are no entries below the header user,item,rating"),
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
    assert same.remarks[1] == "1 duplicate entry at row a, column b: equal, kept once"
    more = triplets([0, 0, 0], [1, 1, 1], [2.0, 2.0, 2.0])
    assert more.remarks == ("2 duplicate entries, the first at row 0, column 1: equal, kept once",)
    with pytest.raises(ValueError, match=r"as 2 \(entry 0\) and 5 \(entry 2\)"):
        triplets([0, 1, 0], [1, 1, 1], [2.0, 2.0, 5.0])


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("item,user,rating\nb1,ann,5\nb2,bob,3.5\n", "user is the row, item the column, rating the value"),
        (
            "userId,movieId,timestamp,rating\nann,b1,99,5\nbob,b2,98,3.5\n",
            "userId is the row, movieId the column, rating the value; timestamp ignored",
        ),
        (",stars,Product ID,who\n0,5,b1,ann\n1,3.5,b2,bob\n", "who is the row, Product ID the column, stars the value"),
        ("x,y,z\nann,b1,5\nbob,b2,3.5\n", "line 1 taken as a header: x is the row, y the column, z the value"),
        ("user,name,item,note,rating\nann,A,b1,n,5\nbob,B,b2,n,3.5\n", "rating the value; name and note ignored"),
        ("date,station,heat\nann,b1,5\nbob,b2,3.5\n", "date is the row, station the column, heat the value"),
        ("ann\tb1\t5\t88\nbob\tb2\t3.5\t89\n", "no header: columns 1, 2, 3 are row, column, value; 4 ignored"),
        ('"Ann; the first",b1,5\n', "no header: columns 1, 2, 3 are row, column, value"),
    ],
)
def test_columns_are_taken_by_name_and_it_is_told(tmp_path, text, remark):
    found = read_triplets(write(tmp_path / "e.csv", text))
    assert remark in found.remarks[0]
    if len(found) == 2:
        assert found.row_names == ("ann", "bob")
        assert found.column_names == ("b1", "b2")
        assert found.values.tolist() == [5, 3.5]


def test_a_broken_first_line_is_told(tmp_path):
    found = read_triplets(write(tmp_path / "e.csv", "x,y,four\n" + "".join(f"a,{n},{n}\n" for n in range(200))))
    assert len(found) == 200
    assert found.remarks == ("line 1 taken as a header: x is the row, y the column, four the value",)


def test_arrays_and_their_faults(tmp_path):
    with pytest.raises(ValueError, match="entry 1: its row must be from 0 to 2, got 7"):
        triplets(np.array([0, 7]), np.array([0, 1]), [1.0, 2.0], shape=(3, 2))
    with pytest.raises(ValueError, match="value at row 1, column 0 is nan"):
        triplets(np.array([0, 1]), np.array([0, 0]), [1.0, np.nan])
    with pytest.raises(ValueError, match="lists of equal length"):
        triplets(np.array([0, 1]), np.array([0]), [1.0, 2.0])
    empty = triplets(np.array([0, 2]), np.array([0, 1]), [1.0, 2.0], shape=(3, 2))
    assert "1 row has no entry, 1: it is predicted" in empty.remarks[0]
    x = np.array([[1.0, np.nan], [np.nan, 2.0]])
    np.savez(tmp_path / "x.npz", X=x)
    assert read_triplets(tmp_path / "x.npz").values.tolist() == [1, 2]
    for kind in ("csr", "coo", "csc"):
        scipy.sparse.save_npz(tmp_path / "s.npz", scipy.sparse.coo_array(np.nan_to_num(x)).asformat(kind))
        assert read_triplets(tmp_path / "s.npz").shape == (2, 2)
    np.savez(tmp_path / "r.npz", rows=[0, 1], columns=[0, 9], values=[1.0, 2.0], shape=[2, 2])
    with pytest.raises(ValueError, match="entry 1: its column must be from"):
        read_triplets(tmp_path / "r.npz")
    whole = (tmp_path / "r.npz").read_bytes()
    (tmp_path / "r.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        read_triplets(tmp_path / "r.npz")


@pytest.mark.parametrize(
    "header",
    ["(", "'\''", "{'descr': '<f8'", "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2)}",
     "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 40 + ",)}"],
)  # fmt: skip
@pytest.mark.parametrize("inside", [False, True])
def test_headers_that_numpy_cannot_parse_are_one_line(tmp_path, header, inside):
    said = header.encode() + b" " * (117 - len(header)) + b"\n"
    file = tmp_path / ("x.npz" if inside else "x.npy")
    array = b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said + bytes(64)
    if inside:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("X.npy", array)
    else:
        file.write_bytes(array)
    with pytest.raises(ValueError, match=r"x\.np[yz] ?(cannot be read|: the array X should have)") as caught:
        read_triplets(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [30, 60, 100, 200, 300])
def test_an_archive_that_is_cut_anywhere_is_named(tmp_path, keep):
    file = tmp_path / "r.npz"
    np.savez(file, rows=np.arange(5), columns=np.arange(5), values=np.arange(5.0))
    whole = file.read_bytes()
    for damaged in (whole[:keep], whole[:keep] + whole[keep + 9 :]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"r\.npz"):
            read_triplets(file)


def test_numbers_are_not_written_as_python_has_them(tmp_path):
    file = tmp_path / "r.csv"
    file.write_text("user,item,rating\na,b,3\nb,c,3_0\n")
    with pytest.raises(ValueError, match=r"line 3: '3_0' is not a number"):
        read_triplets(file)


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


def test_several_processes_find_what_one_does_and_say_so_as_they_go():
    rows, columns, values, _ = planted()
    entries, told = triplets(rows, columns, values), []
    tried = choices(["ratings", "low-rank"], [2], entries.shape)
    one = cross_validate(entries, tried, folds=2, seed=3)
    two = cross_validate(entries, tried, folds=2, seed=3, jobs=2, progress=lambda *said: told.append(said))
    assert two == one
    assert [done for _, done, _ in told] == [0, 1, 2, 3, 4]
    assert told[0][0] == f"cross-validating {tried[0]}"
    assert {total for *_, total in told} == {4}


def test_every_method_fits_and_predicts_for_those_without_entries():
    rows, columns, values, _ = planted(20, 15)
    entries = triplets(rows, columns, values, shape=(21, 16))
    for method in ("low-rank", "ratings", "compressed-deep-linear", "alternating", "nuclear", "scaled-gd"):
        model, _, remark = fit(entries, Choice(method, 2))
        assert np.isfinite(model.at(np.array([20, 0, -1]), np.array([15, 15, -1]))).all(), method
        assert remark
    with pytest.raises(ValueError, match=r"rank must be from 1 to 16 .* got 30"):
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
    assert best[0] == "user,item,predicted"
    assert not seen & {tuple(line.split(",")[:2]) for line in best[1:]}
    assert (out / "cross-validation.svg").stat().st_size > 0


def test_the_table_and_the_last_fit_are_kept_apart(capsys):
    tried = [{"choice": "low-rank", "error": 0.726, "rank": 1}]
    report = {"chosen": "low-rank", "rank": 2, "held_out_error": 0.726, "folds": 5, "tried": tried, "entries": 30}
    print_recovered(report | {"how": "rank 2; least squares are solved", "directory": "out"})
    told = capsys.readouterr().out
    assert "held-out RMSE" in told
    assert (
        "chosen: low-rank, root mean square error 0.7260 on held-out entries, of fits to 4 of 5 parts of the entries\n"
        in told
    )
    assert (
        "fitted to all 30 entries: rank 2 (the table has 1, the rank of the last fold, which was fitted to fewer"
        in told
    )
    assert told.count("rank 2") == 1
    print_recovered(report | {"how": "mean of 60 draws", "directory": "out", "rank": 1})
    assert "fitted to all 30 entries: rank 1; mean of 60 draws\n" in capsys.readouterr().out


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
    told = rankfold("recover", tmp_path / "a.npz", "-o", tmp_path / "out").stdout
    assert "rank 2, converged: residual" in told
    assert "relative held-out error none needed" in told
    noisy = y + 0.001 * rng.standard_normal(100)
    np.savez(tmp_path / "n.npz", y=noisy, seed=7, count=100, shape=[12, 10])
    done_noisy = succeeded("recover", tmp_path / "n.npz", "-o", tmp_path / "out")
    told = rankfold("recover", tmp_path / "n.npz", "-o", tmp_path / "out").stdout
    assert "rank 2, converged: the best fit of this rank misses what it was given by 0.0" in told
    assert f"; relative held-out error {done_noisy['held_out_error']:.2g}\n" in told
    np.savez(tmp_path / "n.npz", y=noisy[:25], A=np.load(tmp_path / "a.npz")["A"][:25])
    assert "NOT converged" in rankfold("recover", tmp_path / "n.npz", "-o", tmp_path / "out").stdout
    same = succeeded("recover", tmp_path / "a.npz", "-o", tmp_path / "out")
    assert np.allclose(same["singular_values"], done["singular_values"])
    np.savez(tmp_path / "b.npz", y=y)
    assert "need their matrices A, or the seed, count and shape of Gaussian ones, and the arrays are y" in failed(
        "recover", tmp_path / "b.npz"
    )


def test_arrays_of_another_form_are_told_of_all_forms(tmp_path):
    file = tmp_path / "s.npz"

    def refused(**arrays):
        np.savez(file, **arrays)
        return failed("recover", file, "-o", tmp_path / "o")

    told = refused(sensing=np.ones((2, 3, 4)), b=np.ones(2))
    assert "its arrays (sensing, b) are not those of entries or measurements: give entries as rows, columns," in told
    assert "values (and shape), as a matrix X" in told
    assert "y with A (count, m, n), or as y with seed, count and shape" in told
    assert "it has the arrays rows, columns, and lacks values" in refused(rows=[0], columns=[0])
    assert "shape (m, n) beside it" in refused(y=np.ones(5), A=np.ones((5, 12)))
    assert "must have 15 columns for the shape (3, 5)" in refused(y=np.ones(5), A=np.ones((5, 12)), shape=[3, 5])
    told = refused(y=np.array([1.0, np.nan]), A=np.ones((2, 3, 4)))
    assert "measurement 1 is NaN or infinite: leave it out, and its matrix" in told
    assert "save names as text" in refused(rows=np.array(["a", None]), columns=[0, 1], values=[1.0, 2.0])
    write(file, "a,b,1\n")
    assert "is not an .npz or .npy, as NumPy writes them: give a text file a name that ends in .csv" in failed(
        "recover", file
    )
    with file.open("wb") as opened:
        np.save(opened, np.ones(3))
    assert "X is a matrix, got shape (3,)" in failed("recover", file)
    file.write_bytes(b"")
    assert "is empty" in failed("recover", file)
    rng = np.random.default_rng(0)
    a, truth = rng.standard_normal((40, 12)), np.outer([1.0, 2.0, 3.0], [1.0, 0.0, 2.0, 1.0])
    np.savez(file, y=a @ truth.reshape(-1), A=a, shape=[3, 4])
    assert succeeded("recover", file, "-o", tmp_path / "o")["rank"] == 1


def test_command_refuses_in_one_line(tmp_path):
    file = write(tmp_path / "e.csv", "a,b,1\na,c,2\nd,b,x\n")
    assert "line 3: 'x' is not a number (row d, column b)" in failed("recover", file)
    good = write(tmp_path / "g.csv", "a,b,1\na,c,2\nd,b,3\nd,c,4\n")
    command = ("recover", good, "--methods", "alternating", "--ranks", "9", "-o", tmp_path / "o")
    assert "rank must be from 1 to 2 for 2 rows and 2 columns, got 9" in failed(*command)
    assert "there is no method 'svd': the methods" in rankfold("recover", good, "--methods", "svd").stderr
    assert "5 folds cannot be made of 4 entries" in failed("recover", good, "-o", tmp_path / "o")
    assert "No such file" in failed("recover", tmp_path / "none.csv")


def test_the_page_of_a_fit_names_the_largest_factors(tmp_path):
    rows, columns = ("ann", "bob", "cay & co"), ("x", "y", "<z>")
    left = np.array([[3.0, 0.1, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])  # the last: an average row
    right = np.array([[2.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]])  # the last: biases
    first, second = factors(FactorModel(left, right, 0.0, -9.0, 9.0, rows, columns, biases=1))
    assert first.rows[0][0] == "ann"
    assert first.columns[0][0] == "x"
    assert abs(first.rows[0][1] * first.columns[0][1] - 6.0) < 0.02
    assert second.rows[0][0] == "bob"
    assert second.columns[0][0] == "<z>"
    assert first.share + second.share == pytest.approx(1.0)
    assert first.share > 0.9


def test_a_completion_leaves_a_page(tmp_path):
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 20, (300, 2)), axis=0)
    values = np.outer(np.arange(1, 21), np.arange(1, 21))[pairs[:, 0], pairs[:, 1]]
    names = [f"<b>{one}" for one in pairs[:, 1]]
    found = triplets(pairs[:, 0], names, values)
    complete(found, choices(("low-rank", "alternating"), (1, 2), found.shape), tmp_path, folds=2)
    text = (tmp_path / "report.html").read_text()
    assert text.count('<svg class="wide"') == text.count("<svg") == 2  # these scroll in a narrow window
    assert text.count("<br>") >= 4  # names stand apart, whatever is in them
    assert "&lt;b&gt;19" in text
    assert "<b>19" not in text
    assert "low-rank, up to rank 2" in text
