"""A header is never taken for an entry silently, and a name that it does not have is told."""

import numpy as np
import pandas as pd
import pytest
from commands import failed, rankfold, succeeded

from rankfold.recover import map_entries, read_pairs, read_plays, read_test, read_triplets


def write(path, text):
    path.write_text(text)
    return path


PLAYS = "who,what\n" + "".join(f"p{i % 4},{'abc'[i % 3]}\n" for i in range(12))


def test_lines_that_are_no_entries_are_told_with_what_to_do(tmp_path):
    file, entries = tmp_path / "r.csv", "ann,a,4\nbob,b,2\ncid,a,3\n"
    file.write_text("Export of ratings 2025\nuser,item,rating\n" + entries)
    with pytest.raises(ValueError, match=r"line 1: 'Export of ratings 2025' is a title, .* 3 fields: remove the line"):
        read_triplets(file)
    file.write_text("user,item,rating\n" + entries + "user,item,rating\n" + entries)
    with pytest.raises(ValueError, match=r"line 5: this looks like the header again.*remove the line"):
        read_triplets(file)
    file.write_text("user,item\nann,a\nuser,item\nbob,b\n")
    with pytest.raises(ValueError, match=r"line 3: this looks like the header again"):
        read_plays(file)
    file.write_text("day,a,b,c\nd1,1,2,\nday,a,b,c\nd2,3,,4\n")
    with pytest.raises(ValueError, match=r"line 3: this looks like the header again"):
        read_triplets(file)
    file.write_text("user_id,item_id,rating\n" + entries)
    message = r"row, column and value are three: name the column of values too \(line 1 is user_id, item_id, rating\)"
    with pytest.raises(ValueError, match=message):
        read_triplets(file, columns="user_id,item_id")
    file.write_text("user item,a,4\nbob,b,2\ncid,a,3\n")  # spaces in a name are none of a title
    assert len(read_triplets(file)) == 3


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


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("value", ["stars", "mark"])
def test_pairs_need_no_column_of_values_whatever_the_columns_are_called(tmp_path, kind, value):
    named = ["who", "tape", value, "made"]
    table = pd.DataFrame({"made": [100, 200], "tape": ["b", "c"], "who": ["r", "r"]})
    asked = tmp_path / f"asked.{kind}"
    table.to_csv(asked, index=False) if kind == "csv" else table.to_parquet(asked)
    found = read_pairs(asked, columns=named, time=True)
    assert (found.row_names, found.column_names, found.times.tolist()) == (("r",), ("b", "c"), [100, 200])
    assert "counted" not in found.remarks[0]
    assert read_pairs(asked, columns=named).column_names == ("b", "c")
    assert read_pairs(asked, columns=named[:3]).column_names == ("b", "c")
    with pytest.raises(ValueError, match=r"there is no column .?film.?: "):
        read_pairs(asked, columns=["who", "film", value, "made"], time=True)


def test_pairs_without_header_are_in_the_order_of_the_entries(tmp_path):
    three = write(tmp_path / "a.csv", "b,r,100\nc,r,200\n")
    found = read_pairs(three, columns=["tape", "who", "mark", "made"], time=True)
    assert (found.row_names, found.column_names, found.times.tolist()) == (("b", "c"), ("r",), [100, 200])
    found = read_pairs(write(tmp_path / "b.csv", "b,r\nc,r\n"), columns=["item", "user", "mark"])
    assert (found.row_names, found.column_names) == (("r",), ("b", "c"))
    found = read_pairs(write(tmp_path / "c.csv", "b,5,r\nc,4,r\n"), columns=["item", "rating", "user"])
    assert (found.row_names, found.column_names) == (("r",), ("b", "c"))


LONG = "sensor,hour,degrees\ns1,12:00,4\ns2,13:00,5\n"
WIDE = "sensor,12:00,13:00,14:00\ns1,4,,6\ns2,,5,7\n"


@pytest.mark.parametrize("text", [LONG, WIDE])
def test_files_beside_the_entries_have_the_header_that_the_entries_have(tmp_path, text):
    file, asked = write(tmp_path / "e.csv", text), write(tmp_path / "a.csv", "sensor,hour\ns1,12:00\ns2,13:00\n")
    found = read_pairs(asked, like=file)
    assert found.remarks[0] == "line 1 taken as a header: sensor is the row, hour the column"
    assert found.shape == (2, 2)
    assert read_pairs(asked, like=file, header=False).shape == (3, 3)
    assert "say --header" in read_pairs(asked).remarks[0]
    assert "say --header" in read_pairs(write(asked, "s1,12:00\ns2,13:00\n"), like=file).remarks[0]


def test_columns_of_files_beside_the_entries_may_stand_in_another_order(tmp_path):
    file, other = write(tmp_path / "e.csv", LONG), tmp_path / "o.csv"
    assert read_pairs(write(other, "hour,sensor\n12:00,s1\n"), like=file).row_names == ("s1",)
    found = read_test(write(other, "degrees,hour,sensor\n4,12:00,s1\n"), like=file)
    assert (found.row_names, found.column_names, found.values.tolist()) == (("s1",), ("12:00",), [4])
    table = pd.DataFrame({"hour": ["12:00"], "degrees": [4.0], "sensor": ["s1"]})
    table.to_parquet(tmp_path / "o.parquet")
    assert read_test(tmp_path / "o.parquet", like=file).row_names == ("s1",)


def test_a_table_beside_a_table_is_one(tmp_path):
    file = write(tmp_path / "e.csv", WIDE)
    assert read_test(file, like=file).column_names == ("12:00", "13:00", "14:00")


def test_what_was_taken_as_what_is_told_of_every_file(tmp_path):
    lines = [f"u{i},i{j},{i + j}" for i in range(8) for j in range(6)]
    file = write(tmp_path / "e.csv", "\n".join(lines))
    asked, test = write(tmp_path / "a.csv", "who,what\nu1,i2\n"), write(tmp_path / "t.csv", "u1,i2,3\nu1,i2,4\n")
    for more in (["--methods", "low-rank", "--folds", "2"], ["--memory", "2GB"]):
        given = ("recover", file, "--predict", asked, "--test", test, *more, "-o", tmp_path / "out")
        told = rankfold(*given).stderr
        assert "a.csv: no header: columns 1, 2 are row, column; line 1 (who, what) is read as an entry" in told
        assert "t.csv: no header: columns 1, 2, 3 are row, column, value" in told


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


@pytest.mark.parametrize("name", ["rated_at", "Created_At", "timestamp"])
def test_a_column_of_moments_is_no_value(tmp_path, name):
    file = tmp_path / "plays.csv"
    file.write_text(
        f"who,film,{name}\n" + "".join(f"u{n % 4},f{n % 5},2024-05-{n + 1:02} 10:00:00\n" for n in range(20))
    )
    assert len(read_plays(file)) == 20
    with pytest.raises(ValueError, match="implicit"):
        read_triplets(file)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_times_where_values_should_be_are_told_with_what_to_do(tmp_path, kind):
    file = tmp_path / f"table.{kind}"
    frame = pd.DataFrame({"who": ["a", "b"], "film": ["x", "y"], "when it was": ["2024-05-20 16:11:15", "2024-05-21"]})
    frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
    with pytest.raises(ValueError, match=r"'2024-05-20 16:11:15' is not a number.*: it is a time; say which columns"):
        read_triplets(file)
