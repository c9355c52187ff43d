"""Tables as people have them: names are text, two readers give one answer, what cannot be meant is refused."""

import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.recover import LowRank, Ratings, map_entries, read_pairs, read_triplets, triplets
from rankfold.recover.tables.fast import Odd, read_fast
from rankfold.recover.tables.layout import Wanted, layout
from rankfold.recover.tables.lines import read_lines
from rankfold.recover.tables.names import named


def write(path, text):
    path.write_bytes(text.encode())
    return path


def entries(found):
    """{(row name, column name): value}."""
    names = zip(found.rows.tolist(), found.columns.tolist(), found.values.tolist(), strict=True)
    return {(found.row_names[row], found.column_names[column]): value for row, column, value in names}


def told(found):
    """What a file is read as, or refused with."""
    try:
        read = found.triplets("last")
    except ValueError as error:
        return str(error)
    return entries(read), read.row_names, read.column_names, read.remarks


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


NAME = st.text(st.sampled_from("ab 0123'é\"x-_.#"), min_size=1, max_size=5)
FIELD = st.one_of(NAME, st.just(""), st.just("7" * 5), st.just(" padded "))
VALUE = st.sampled_from(["1", "2.5", " 3", "1e2", "-4", "+5", "nan", "", "x", "1_0", "inf", "0x1"])
LINE = st.tuples(FIELD, FIELD, VALUE, st.sampled_from(["", ",9", ","]))


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(LINE, min_size=1, max_size=6), quoted=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_the_fast_reader_never_differs_from_the_slow_one(scratch, lines, quoted, end):
    mark = '"' if quoted else ""
    text = "user,item,rating\n" + end.join(f"{mark}{a}{mark},{b},{c}{d}" for a, b, c, d in lines)
    path = write(scratch / "e.csv", text)
    form = layout(text.splitlines()[0] + "\n", Wanted())
    try:
        fast = read_fast(path, form)
    except Odd:
        return
    assert told(fast) == told(read_lines(path, form))


def test_plain_files_take_the_fast_way(tmp_path):
    for text in ("user,item,rating\na,b,1\n", '"a","b",1\r\n"c","b",2\r\n', "1::2::3::9\n2::2::4::9\n"):
        path = write(tmp_path / "e.csv", text)
        assert len(read_fast(path, layout(text, Wanted())).values) == text.count("\n") - text.startswith("user")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 1000])
def test_two_colons_across_the_borders_of_blocks(tmp_path, monkeypatch, count):
    monkeypatch.setattr("rankfold.recover.tables.fast._BLOCK", 7)
    text = "".join(f"{i}::{i % 3}::{i % 5 + 1}::97830{i}\n" for i in range(count))
    found = read_triplets(write(tmp_path / "ratings.dat", text))
    assert entries(found) == {(str(i), str(i % 3)): i % 5 + 1.0 for i in range(count)}
    assert "4 ignored" in found.remarks[0]


def test_names_are_kept_as_written_and_agree_across_files(tmp_path):
    found = read_triplets(write(tmp_path / "a.csv", "007,a,1\n7,a,2\n08,b,3\n"))
    assert found.row_names == ("007", "7", "08")
    other = read_triplets(write(tmp_path / "b.csv", "user,item,rating\n7,a,3\nX,a,1\n"))
    assert other.numbered(found.row_names, found.column_names)[0].tolist() == [1, -1]
    huge = "9" * 5000
    assert read_triplets(write(tmp_path / "c.csv", f"{huge},a,1\n1,a,2\n")).row_names == ("1", huge)


def test_numbers_in_arrays_are_one_name_whatever_their_kind():
    for rows in ([1, 2], [1.0, 2.0], np.array([1, 2], np.int8), pd.array([1, 2], "Int64"), ["1", "2"], [1, 2.0]):
        assert triplets(rows, ["a", "b"], [1, 2]).row_names == ("1", "2")
    assert named(np.array(["2", 10, 1.0], dtype=object))[0] == ("1", "2", "10")
    pairs = pd.DataFrame({"user": [1.0, 2.0, 3.0], "item": ["a", "b", "a"]})
    model = Ratings(1, burn_in=2, draws=2).fit(pairs, [1.0, 2.0, 3.0])
    assert model.model_.row_names == ("1", "2", "3")
    assert np.array_equal(model.predict(pairs), model.predict([[1, "a"], [2, "b"], ["3", "a"]]))
    with pytest.raises(ValueError, match="entry 1: the row is missing"):
        triplets(pd.array([1, None], "Int64"), ["a", "b"], [1, 2])
    with pytest.raises(ValueError, match="value at row 1, column b is nan"):
        triplets([0, 1], ["a", "b"], pd.array([1, None], "Int64"))
    with pytest.raises(ValueError, match="value at row 1, column b is nan"):
        triplets([0, 1], ["a", "b"], np.ma.array([1.0, 2.0], mask=[False, True]))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_unknown_is_what_numpy_scipy_and_pandas_mean_by_it():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 25))
    known = rng.random(truth.shape) < 0.5
    x = np.where(known, truth, np.nan)
    rows, columns = np.nonzero(known)
    half = truth[known] / 2
    twice = scipy.sparse.coo_array((np.r_[half, half], (np.r_[rows, rows], np.r_[columns, columns])), truth.shape)
    masked = np.ma.array(np.where(known, truth, 99.0), mask=~known)
    nullable = pd.DataFrame(x).astype("Float64")
    tensor = torch.sparse_coo_tensor(np.stack([twice.row, twice.col]), twice.data, twice.shape, check_invariants=True)
    graded = torch.tensor(x, requires_grad=True)
    frames = [pd.DataFrame.sparse.from_spmatrix(twice.tocsr()), pd.DataFrame(x).astype(pd.SparseDtype(float, np.nan))]
    for given_x in (x, masked, nullable, twice, twice.tocsr(), twice.tolil(), tensor, tensor.to_dense().to_sparse_csr(),
                    graded, *frames):  # fmt: skip
        assert np.abs(LowRank().fit(given_x).reconstruct() - truth).max() < 1e-6
    assert twice.nnz == 2 * known.sum()  # and left as it was


def test_what_is_no_matrix_of_real_numbers_is_refused_in_a_line():
    series = pd.DataFrame({"u": ["a", "b"], "i": ["x", "y"], "v": [1.0, 2.0]}).set_index(["u", "i"]).v
    for given_x, message in (
        (series, "a list of entries: its matrix is series.unstack"),
        (np.ones((3, 3)) + 1j, "Complex data not supported: values must be real numbers"),
        (np.rec.fromarrays([[1, 2], [3, 4]], names="a,b"), "these are records with named fields"),
    ):
        with pytest.raises(ValueError, match=message):
            LowRank(1).fit(given_x)


MOMENTS = ["2001-01-01T00:00:00", "2001-01-02T12:00:00.5"]
DATES = pd.to_datetime(pd.Series(MOMENTS), format="ISO8601")
TIMES = [  # of what numpy, pandas, datetime and texts call a time
    np.array(MOMENTS, "M8[ms]"), np.array(MOMENTS, "M8[ns]"), DATES, DATES.dt.tz_localize("UTC"), DATES.dt.as_unit("s"),
    DATES.dt.to_pydatetime().tolist(), MOMENTS, np.array(MOMENTS, dtype=object), [978307200, 978436800.5],
]  # fmt: skip


@pytest.mark.parametrize("times", TIMES, ids=range(len(TIMES)))
def test_times_are_seconds_whatever_they_are_given_as(times):
    found = triplets([1, 2], [1, 2], [1.0, 2.0], times=times)
    assert found.times.tolist() == pytest.approx([978307200, 978436800.5], abs=0.6)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0], r"2 numbers of seconds since 1970, or dates, .* got shape \(1,\)"),
        (["soon", "1"], "'soon' is not a time"),
    ],
)
def test_what_is_no_time_is_refused(times, message):
    with pytest.raises(ValueError, match=message):
        triplets([1, 2], [1, 2], [1.0, 2.0], times=times)


def test_times_in_parquet_may_be_finer_than_milliseconds(tmp_path):
    moments = pa.array([978307200123457, 978307201000000], pa.timestamp("us"))
    table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "rating": [1.0, 2.0], "timestamp": moments})
    pa.parquet.write_table(table, tmp_path / "e.parquet")
    found = read_triplets(tmp_path / "e.parquet", time=True)
    assert found.times.tolist() == pytest.approx([978307200.123457, 978307201.0], abs=1e-5)


def test_repeated_entries_as_asked(tmp_path):
    file = write(tmp_path / "e.csv", "a,b,1\na,c,7\na,b,2\n")
    assert read_triplets(file, duplicates="sum").values.tolist() == [3, 7]
    np.savez(tmp_path / "s.npz", format="coo", row=[0, 0], col=[1, 1], data=[1.0, 2.0], shape=[2, 2])
    assert read_triplets(tmp_path / "s.npz").values.tolist() == [3]
    with pytest.raises(ValueError, match="must be 'refuse', 'mean', 'last' or 'sum', got 'first'"):
        read_triplets(file, duplicates="first")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('u1,a,1\n"bob,b,2\nu2,a,1\n', "line 2: a quote"),
        ('u1,a,1\n"bob,b,2\nu2,a,1\n"amy,b,2\n', "line 2: a quote"),
        ('u1,a,1\n"bob,b,2\nu2,a",b,2\n', r"line 3: a name goes on over several lines \('bob,b,2' …\)"),
        ('"bob,1,3\n' + "u,i,3\n" * 50_000, "line 1: a quote"),
        ('u1,a,1\n"weird al" yankovic,b,2\n', "line 2: a quote"),
        ("a,b,1\0\n", "line 1: it holds a zero byte"),
        ("ann,b1\nbob,b2\n", "implicit feedback: add --implicit"),
        ("user,item\nann,b1\n", "implicit feedback: add --implicit"),
        ("1,5,3,4,1\n2,1,2,3,4\n", "5 columns of numbers without a header"),
        ("u,a,b,c\nx,1,2,3\ny,1,two,3\n", "line 3: 'two' is not a number"),
        ("user,1,2,3\nx,1,2,3\ny,1,two,3\n", r"line 3: 'two' is not a number|line 1"),
        ("# taken from us\n# FromNode\tToNode\n1\t2\t3\n1\t3\t4\n", "line 1: it begins with #, as a remark does"),
        ("%%matrix of 2001 cells\na b 3\nc d 4\n", "line 1: it begins with %, as a remark does"),
        ("a   b   1\nc   d   2\n", "line 1: its fields lie several spaces apart"),
        ("user,item,timestamp\na,b,978300760\n", "without a value; .* implicit feedback: add --implicit"),
        ("day_of,who,date\n1,b,978300760\n", "day_of, who and date are a row, a column and a time"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_triplets(write(tmp_path / "e.csv", text))


def test_text_that_is_ignored_may_be_long_and_span_lines(tmp_path):
    text = 'user,item,rating,review\na,b,1,"' + "long\n" * 100_000 + '"\nc,d,2,"say ""no"""\n'
    found = read_triplets(write(tmp_path / "e.csv", text))
    assert entries(found) == {("a", "b"): 1.0, ("c", "d"): 2.0}


def test_a_field_of_any_length_may_stand_in_the_lines_that_tell_the_layout(tmp_path):
    text = f"user,item,rating,review\na,b,1,{'y' * 150_000}\nc,d,2,\n"
    assert entries(read_triplets(write(tmp_path / "r.csv", text))) == {("a", "b"): 1, ("c", "d"): 2}
    with pytest.raises(ValueError, match="line 3: there are 1 of 3 fields"):
        read_triplets(write(tmp_path / "r.csv", f"user,item,rating,review\na,b,1,\n{'y' * 150_000}\n"))


def test_what_is_not_utf_8_is_told_by_its_line(tmp_path):
    (tmp_path / "e.csv").write_bytes(b"a,b,1\n" * 100_000 + "é,b,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"not a text file in UTF-8 \(byte 600000, line 100001\): save it as UTF-8"):
        read_triplets(tmp_path / "e.csv")


@pytest.mark.parametrize(("pack", "name"), [(gzip, "gzip"), (bz2, "bzip2"), (lzma, "xz")])
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_packed_text_is_refused_with_the_remedy_whatever_it_is_called(tmp_path, pack, name, ending):
    file = tmp_path / f"e.{ending}"
    file.write_bytes(pack.compress(b"a,b,1\nc,d,2\n"))
    for read in (read_triplets, lambda path: map_entries(path, tmp_path / "entries")):
        with pytest.raises(ValueError, match=rf"e\.{ending} is packed by {name}: unpack it"):
            read(file)


def test_names_and_columns_may_begin_as_remarks_and_marks_of_packers_do(tmp_path):
    tags = "#one,x,1\n#two,y,2\nBZh,z,3\n"
    assert entries(read_triplets(write(tmp_path / "e.csv", tags))) == {
        ("#one", "x"): 1.0, ("#two", "y"): 2.0, ("BZh", "z"): 3.0,
    }  # fmt: skip
    timed = "runner,race,time\nann,r1,12.5\nbob,r1,13\n"  # what was measured
    assert entries(read_triplets(write(tmp_path / "e.csv", timed))) == {("ann", "r1"): 12.5, ("bob", "r1"): 13.0}


def test_wide_tables(tmp_path):
    pivot = pd.DataFrame({"101": [5, np.nan], "102": [np.nan, 3], "103": [1, 2]}, index=pd.Index([7, 8], name="userId"))
    expected = {("7", "101"): 5.0, ("7", "103"): 1.0, ("8", "102"): 3.0, ("8", "103"): 2.0}
    pivot.to_csv(tmp_path / "e.csv")
    found = read_triplets(tmp_path / "e.csv")
    assert entries(found) == expected
    assert "read as a table" in found.remarks[0]
    pivot.to_csv(tmp_path / "e.csv", sep=";", na_rep="NA")
    assert entries(read_triplets(tmp_path / "e.csv")) == expected
    named_table = "who,i1,i2,i3\nann, 5,,1\nbob,?,3,2\n"
    assert len(read_triplets(write(tmp_path / "e.csv", named_table))) == 4
    wrong = "who,i1,i2,i3\n" + "".join(f"u{i},5,,1\n" for i in range(2000)) + "bob,1,3,x\n"
    with pytest.raises(ValueError, match=r"line 2002: 'x' is not a number \(row bob, column i3\)"):
        read_triplets(write(tmp_path / "e.csv", wrong))
    long = "who,what,heat,when\nann,1,30.5,9\nann,2,31,9\n"  # a name comes twice: an entry a line
    assert read_triplets(write(tmp_path / "e.csv", long)).shape == (1, 2)
    told = read_triplets(write(tmp_path / "e.csv", "who,what,heat,when\n1,2,30.5,9\n"), columns=["who", "what", "heat"])
    assert entries(told) == {("1", "2"): 30.5}


TABLE = pd.DataFrame(
    np.where(np.eye(6, 7), np.nan, 3.0), [f"ann{i}" for i in range(6)], [f"film {j}" for j in range(7)]
)


@pytest.mark.parametrize("how", [{"index": False}, {"header": False}, {"index": False, "header": False}], ids=str)
@pytest.mark.parametrize("values", [TABLE, TABLE.fillna(2.0)], ids=["holes", "full"])
def test_a_table_that_lacks_its_names_is_refused_in_plain_words(tmp_path, how, values):
    with pytest.raises(
        ValueError, match=r"line 1: \d columns of numbers .* are neither a table nor entries: .*header"
    ) as told:
        read_triplets(write(tmp_path / "t.csv", values.to_csv(**how)))
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    "values", [TABLE, TABLE.fillna(2.0), TABLE.rename_axis("user")], ids=["holes", "full", "named"]
)
def test_a_table_in_parquet_is_not_taken_for_entries(tmp_path, values):
    values.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"7 columns of numbers \(film 0, film 1, …\) are no entries"):
        read_triplets(tmp_path / "t.parquet")


def test_two_names_for_three_columns_and_one_name_for_two_are_refused(tmp_path):
    file = write(tmp_path / "t.csv", "a,b,1\nc,d,2\n")
    with pytest.raises(
        ValueError, match=r"2 columns are named \(user, item\), and row, column and value are three.*implicit"
    ):
        read_triplets(file, columns=["user", "item"])
    with pytest.raises(ValueError, match="two columns are called 'item'"):
        read_triplets(write(tmp_path / "t.csv", "item,item,rating\na,b,1\n"))


def test_columns_as_asked(tmp_path):
    headless = write(tmp_path / "e.csv", "5,ann,b1\n3,bob,b2\n")
    expected = {("ann", "b1"): 5.0, ("bob", "b2"): 3.0}
    assert entries(read_triplets(headless, columns=["rating", "user", "item"])) == expected
    with_header = write(tmp_path / "f.csv", "heat,who,site,movieId,day\n5,ann,b1,x,9\n3,bob,b2,y,9\n")
    assert entries(read_triplets(with_header, columns=["who", "site", "heat"])) == expected
    with pytest.raises(ValueError, match=r"line 1: 4 columns are named .*, and line 1 has 3 fields"):
        read_triplets(headless, columns=["user", "item", "rating", "time"])
    pairs = write(tmp_path / "p.csv", "ann,b1\nann,b1\nbob,b2\n")
    found = read_triplets(pairs, columns=["user", "item"], implicit=True, duplicates="sum")
    assert entries(found) == {("ann", "b1"): 2.0, ("bob", "b2"): 1.0}


def test_times(tmp_path):
    file = write(tmp_path / "e.csv", "user,item,rating,date\na,b,1,1970-01-02\nc,d,2,1970-01-01T00:00:10+00:00\n")
    assert read_triplets(file, time=True).times.tolist() == [86400, 10]
    milliseconds = write(tmp_path / "e.csv", "a,b,1,978300760000\nc,d,2,978300761000\n")
    assert read_triplets(milliseconds, time=True).times.tolist() == [978300760, 978300761]
    with pytest.raises(ValueError, match=r"line 2: 'soon' is not a time \(row a, column b\): write seconds since 1970"):
        read_triplets(write(tmp_path / "e.csv", "user,item,rating,date\na,b,1,soon\n"), time=True)
    assert len(read_triplets(tmp_path / "e.csv")) == 1  # not asked for, not read
    with pytest.raises(
        ValueError, match=r"is known as a time, and with times every file needs one: .* names of all four"
    ):
        read_triplets(write(tmp_path / "e.csv", "user,item,rating\na,b,1\n"), time=True)


def test_parquet(tmp_path):
    table = pd.DataFrame({"rating": [1.0, 2.5], "userId": pd.array([7, 8], "Int64"), "item": ["07", "7"]})
    table.to_parquet(tmp_path / "e.parquet")
    found = read_triplets(tmp_path / "e.parquet")
    assert entries(found) == {("7", "07"): 1.0, ("8", "7"): 2.5}
    assert found.remarks[0] == "userId is the row, item the column, rating the value"
    table.loc[1, "rating"] = None
    table.to_parquet(tmp_path / "e.parquet")
    assert entries(read_triplets(tmp_path / "e.parquet")) == {("7", "07"): 1.0}
    pa.parquet.write_table(
        pa.table({"user": ["a", None], "item": ["x", "y"], "rating": [1, 2]}), tmp_path / "e.parquet"
    )
    with pytest.raises(ValueError, match="row 2 of the file: the row is missing"):
        read_triplets(tmp_path / "e.parquet")
    (tmp_path / "e.parquet").write_bytes((tmp_path / "e.parquet").read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_triplets(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("rating", ["1", "oops"], r"row 2 of the file: 'oops' is not a number \(row b, column y\)"),
        ("rating", ["1", "2,5"], r"'2,5' is not a number \(row b, column y\): write decimals with a point"),
        ("rating", [1.0, np.inf], r"row 2 of the file: the value is inf \(row b, column y\): leave the row out"),
        (
            "timestamp",
            ["2020-01-01", "soon"],
            r"row 2 of the file: 'soon' is not a time \(row b, column y\): write seconds",
        ),
        ("timestamp", [1.0, 1e18], r"row 2 of the file: '1e\+18' is not a time \(row b, column y\)"),
        ("timestamp", [1.0, None], r"row 2 of the file: the time \(timestamp\) is missing \(row b, column y\)"),
        (
            "timestamp",
            [True, False],
            "the column timestamp holds values of type bool, which are no times: write seconds",
        ),
        ("user", ["a", ""], "row 2 of the file: the row is missing"),
    ],
)
def test_faults_of_parquet_name_row_and_column_as_those_of_text(tmp_path, column, cells, message):
    table = {"user": ["a", "b"], "item": ["x", "y"], "rating": [1.0, 2.0], "timestamp": [1.0, 2.0]}
    pa.parquet.write_table(pa.table({**table, column: cells}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=message):
        read_triplets(tmp_path / "e.parquet", time=True)
    if column != "timestamp":
        with pytest.raises(ValueError, match=message):
            map_entries(tmp_path / "e.parquet", tmp_path / "m")


@pytest.mark.parametrize("coded", [False, True])
def test_texts_in_parquet_are_numbers_and_times_as_in_a_text(tmp_path, coded):
    table = pd.DataFrame(
        {
            "user": ["a", "b", "c"],
            "item": ["x", "y", "x"],
            "rating": ["1.5", "NA", "2"],
            "timestamp": ["1970-01-02", "1970-01-03", "86400000000"],
        }
    )
    table = table.astype("category") if coded else table
    table.to_parquet(tmp_path / "e.parquet")
    table.to_csv(tmp_path / "e.csv", index=False)
    found, plain = (read_triplets(tmp_path / f"e.{kind}", time=True) for kind in ("parquet", "csv"))
    assert entries(found) == entries(plain) == {("a", "x"): 1.5, ("c", "x"): 2.0}
    assert found.times.tolist() == plain.times.tolist() == [86400, 86400000000]


def npz_with(path, name, shape):
    """An .npz whose array says that it has ``shape`` and holds nothing."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", header.getvalue())
    return path


def test_absurd_shapes_are_refused_before_memory_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="the array X should have shape"):
        read_triplets(npz_with(tmp_path / "a.npz", "X", (10**9, 10**9)))
    few = {"rows": [0, 1], "columns": [0, 1], "values": [1.0, 2.0]}
    for shape in ([10**12, 5], [5, 10**12], [-3, 5], [2.5, 3], [np.inf, 3], [3]):
        np.savez(tmp_path / "a.npz", shape=shape, **few)
        with pytest.raises(ValueError, match=r"the shape|shape must be the two numbers"):
            read_triplets(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", format="coo", row=[0], col=[0], data=[1.0], shape=[10**12, 10**12])
    with pytest.raises(ValueError, match="rows for 1 entries: is it right"):
        read_triplets(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", format="csr", indices=[0, 99], indptr=[0, 1, 2], data=[1.0, 2.0], shape=[2, 2])
    with pytest.raises(ValueError):
        read_triplets(tmp_path / "a.npz")


LACKING = "when,who,what,stars\n1,ann,x,5\n2,bob,y,\n3,cid,x,NA\n4,ann,y,2\n"


@pytest.mark.parametrize("odd", ["", '\n5,"ann ""A""",x,4\n'], ids=["fast", "slow"])
def test_an_empty_value_is_unknown_as_in_a_table(tmp_path, odd):
    file = write(tmp_path / "diary.csv", LACKING + odd)
    found = read_triplets(file, time=True)
    assert entries(found).items() >= {("ann", "x"): 5.0, ("ann", "y"): 2.0}.items()
    assert (len(found), found.times.tolist()[:2]) == (2 + bool(odd), [1, 4])
    assert {"ann", "bob", "cid"} <= set(found.row_names)  # to be predicted
    assert found.remarks[1] == "2 entries have no value and are left out (the first is line 3)"
    mapped = map_entries(file, tmp_path / "entries")
    assert (mapped.shape, len(mapped), mapped.remarks[1]) == (found.shape, len(found), found.remarks[1])
    pairs = read_pairs(file, time=True)  # whose values are not read
    assert len(pairs) == 4 + bool(odd)


def test_values_that_are_all_empty_are_refused_with_the_remedy(tmp_path):
    file = write(tmp_path / "e.csv", "user,item,rating,note\na,x,,1\nb,y,,2\n")
    for read in (read_triplets, lambda given: map_entries(given, tmp_path / "entries")):
        with pytest.raises(ValueError, match=r"none of the 2 entries has a value \(the first is line 2\): .*--columns"):
            read(file)
    assert len(read_triplets(file, columns=["user", "item", "note"])) == 2


def test_pairs_with_a_time_of_their_own(tmp_path):
    file = write(tmp_path / "new.csv", "member,cheese\na,x\n")
    with pytest.raises(ValueError, match="every file needs one: call the column time in its header"):
        read_pairs(file, time=True)
    assert read_pairs(write(file, "member,cheese,time\na,x,7\n"), time=True).times.tolist() == [7]


def test_decimals_with_a_comma_in_a_table_are_told_as_in_a_list(tmp_path):
    file = tmp_path / "wide.csv"
    file.write_text("sensor;A 1;A 2;A 3\ns0;;18,93;\ns1;1,5;;x\n")
    with pytest.raises(
        ValueError, match=r"line 2: '18,93' is not a number: write decimals with a point \(row s0, column A 2\)$"
    ):
        read_triplets(file)
    file.write_text("sensor;A 1;A 2;A 3\ns0;;18.93;\ns1;1.5;;x\ns2;1;2;3\n")
    with pytest.raises(ValueError, match=r"line 3: 'x' is not a number \(row s1, column A 3\): leave it empty where"):
        read_triplets(file)
    file.write_text("sensor;A 1;A 2;A 3\ns0;;18.93;\ns1;1.5;;inf\ns2;1;2;3\n")
    with pytest.raises(ValueError, match=r"line 3: 'inf' is not a number \(row s1, column A 3\): leave it empty where"):
        read_triplets(file)
