"""A header is never taken for an entry silently, and a name that it does not have is told."""

import numpy as np
import pytest
from commands import failed, rankfold, succeeded

from rankfold.recover import map_entries, read_pairs, read_plays, read_triplets


def write(path, text):
    path.write_text(text)
    return path


PLAYS = "who,what\n" + "".join(f"p{i % 4},{'abc'[i % 3]}\n" for i in range(12))


def test_a_first_line_that_may_be_a_header_is_told_of(tmp_path):
    file = write(tmp_path / "e.csv", PLAYS)
    found = read_plays(file)
    assert found.shape == (5, 4)
    assert "line 1 (who, what) is read as an entry, though its names come nowhere else" in found.remarks[0]
    assert "--header" in found.remarks[0]
    assert "--no-header" in found.remarks[0]
    assert read_plays(file, header=True).shape == (4, 3)
    assert "line 1 taken as a header: who is the row, what the column" in read_plays(file, header=True).remarks[0]
    assert read_plays(file, header=False).shape == (5, 4)
    assert read_plays(file, header=False).remarks[0] == "no header: columns 1, 2 are row, column"
    again = write(tmp_path / "a.csv", PLAYS + "who,b\n")
    assert "--header" not in read_plays(again).remarks[0]  # the name comes again: it is a row
    assert read_pairs(file, header=True).shape == (4, 3)
    mapped = map_entries(file, tmp_path / "m", implicit=True, duplicates="sum", header=True)
    assert mapped.shape == (4, 3)
    assert map_entries(file, tmp_path / "m", implicit=True, duplicates="sum").shape == (5, 4)
    told = rankfold("recover", file, "--implicit", "--methods", "popularity", "-o", tmp_path / "out").stderr
    assert "line 1 (who, what) is read as an entry" in told
    report = succeeded("recover", file, "--implicit", "--methods", "popularity", "--header", "-o", tmp_path / "out")
    assert report["shape"] == [4, 3]


def test_a_header_of_numbers_below_numbers(tmp_path):
    file = write(tmp_path / "e.csv", "alpha,beta,gamma\n1,2,3\n4,5,6\n")
    assert len(read_triplets(file)) == 2
    with pytest.raises(ValueError, match="line 1: 'gamma' is not a number"):
        read_triplets(file, header=False)


def test_a_name_that_the_header_does_not_have_is_told(tmp_path):
    for head in ("score,when,isbn,reader", "alpha,beta,gamma,delta"):
        file = write(tmp_path / "e.csv", head + "\n4,100,b,r\n5,200,c,r\n")
        with pytest.raises(ValueError, match=f"there is no column 'user': the header has {head.replace(',', ', ')}"):
            read_triplets(file, columns=["user", "item", "rating"])
    plain = write(tmp_path / "p.csv", "r,b,4\nr,c,5\n")
    assert read_triplets(plain, columns=["item", "user", "rating"]).row_names == ("b", "c")
    with pytest.raises(ValueError, match="there is no column 'item'"):
        read_triplets(plain, columns=["item", "user", "rating"], header=True)


def test_a_time_of_any_name(tmp_path):
    file = write(tmp_path / "e.csv", "score,made,isbn,reader\n4,100,b,r\n5,200,c,r\n")
    with pytest.raises(
        ValueError,
        match=r"is known as a time, .*: call the column time .*, or give the names of all four, the time last",
    ):
        read_triplets(file, time=True)
    found = read_triplets(file, time=True, columns=["reader", "isbn", "score", "made"])
    assert found.times.tolist() == [100, 200]
    assert found.values.tolist() == [4, 5]
    assert "made the time" in found.remarks[0]
    with pytest.raises(ValueError, match="there is no column 'stamp'"):
        read_triplets(file, time=True, columns=["reader", "isbn", "score", "stamp"])
    plain = write(tmp_path / "p.csv", "r,b,4,100\nr,c,5,200\n")
    assert read_triplets(plain, time=True, columns=["a", "b", "c", "d"]).times.tolist() == [100, 200]


def test_conflicts_are_counted(tmp_path):
    file = write(tmp_path / "e.csv", "a,b,1\na,b,2\na,c,1\na,c,1\na,d,3\na,d,4\na,d,5\nb,d,6\nb,d,7\n")
    with pytest.raises(ValueError, match=r"as 1 \(line 1\) and 2 \(line 2\), and so are 2 others: remove one"):
        read_triplets(file)


def test_one_matrix_in_a_file(tmp_path):
    x = np.array([[1.0, np.nan, 3.0], [2.0, 4.0, np.nan]])
    np.save(tmp_path / "x.npy", x)
    found = read_triplets(tmp_path / "x.npy")
    assert found.shape == (2, 3)
    assert found.values.tolist() == [1, 3, 2, 4]
    for bad, told in (
        (np.ones(3), "X is a matrix, got shape"),
        (np.array([[1j]]), "X must be a matrix of numbers"),
        (np.array([[np.inf, 1.0]]), "is inf: leave the entry out"),
        (np.array([["a", None]], dtype=object), "it holds Python objects"),
    ):
        np.save(tmp_path / "bad.npy", bad)
        assert told in failed("recover", tmp_path / "bad.npy", "-o", tmp_path / "out")
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-8])
    assert "cannot be read as .npy" in failed("recover", tmp_path / "cut.npy", "-o", tmp_path / "out")
