"""Entries in files: read and sorted as the reader in memory has them, fitted to the same, never held as a whole."""

import json
import os
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from commands import failed, rankfold, succeeded

from rankfold.pipeline.recovery import complete_mapped
from rankfold.recover import (
    AlternatingMinimization,
    ImplicitFeedback,
    LowRank,
    NuclearNorm,
    map_entries,
    read_mapped,
    read_triplets,
)
from rankfold.recover.mapped import entries as mapped
from rankfold.recover.mapped import mapping, sorting
from rankfold.recover.measurements.bits import CHUNK, Bits, drawn
from rankfold.recover.measurements.operators import Entries
from rankfold.recover.measurements.streamed import StreamedEntries
from rankfold.run.claim import ClaimError, claimed


@pytest.fixture
def few_at_a_time(monkeypatch):
    for module in (sorting, mapping, mapped):
        monkeypatch.setattr(module, "CHUNK", 7)
    monkeypatch.setattr("rankfold.recover.tables.fast._BLOCK", 60)


def same(found, told):
    whole = found.take(np.arange(len(found)))
    order = np.lexsort((told.columns, told.rows))
    assert (found.row_names, found.column_names) == (told.row_names, told.column_names)
    for one, other in ((whole.rows, told.rows), (whole.columns, told.columns), (whole.values, told.values)):
        assert np.array_equal(one, other[order])
    assert found.remarks == told.remarks
    assert (found.low, found.high) == (told.values.min(), told.values.max())


def table(count, seed=0, users=15, items=11):
    rng = np.random.default_rng(seed)
    cells = rng.permutation(users * items)[:count]
    return pd.DataFrame({"user": cells // items, "item": [f"i{c % items}" for c in cells], "rating": rng.random(count)})


@pytest.mark.parametrize("odd", ["", "\n\n", '"a ""b""",i0,3\n'])
def test_files_hold_what_the_reader_in_memory_reads(tmp_path, few_at_a_time, odd):
    text = table(120).to_csv(index=False) + odd
    file = tmp_path / "ratings.csv"
    file.write_text(text)
    same(map_entries(file, tmp_path / "entries"), read_triplets(file))


@pytest.mark.parametrize(
    "rows", [slice(3, 7), slice(None), slice(-4, None), slice(8, 2, -2), slice(5, 5), [-1, 0, 0], np.array([2, -3]), []]
)
def test_rows_are_picked_as_numpy_picks_them(tmp_path, rows):
    file = tmp_path / "ratings.csv"
    table(120).to_csv(file, index=False)
    found = map_entries(file, tmp_path / "entries")
    told = found.take(np.arange(len(found)))
    whole = np.zeros(found.shape)
    whole[told.rows, told.columns] = told.values
    assert np.array_equal(found[rows].toarray(), whole[rows if isinstance(rows, slice) else np.array(rows, dtype=int)])
    with pytest.raises(IndexError):
        found[[found.shape[0]]]


def test_parquet_and_two_colons_and_no_header(tmp_path, few_at_a_time):
    given = table(90)
    given.to_parquet(tmp_path / "r.parquet")
    same(map_entries(tmp_path / "r.parquet", tmp_path / "p"), read_triplets(tmp_path / "r.parquet"))
    lines = [f"{user}::{item}::{value}::9\n" for user, item, value in given.itertuples(index=False)]
    (tmp_path / "r.dat").write_text("".join(lines))
    same(map_entries(tmp_path / "r.dat", tmp_path / "d"), read_triplets(tmp_path / "r.dat"))


def test_repeated_entries_far_apart_are_one_as_asked(tmp_path, few_at_a_time):
    text = table(60).to_csv(index=False)
    lines = text.splitlines()
    file = tmp_path / "r.csv"
    file.write_text(text + f"{lines[3]}\n{lines[40]}\n")
    same(map_entries(file, tmp_path / "equal"), read_triplets(file))
    file.write_text(text + "".join(f"{lines[at].rsplit(',', 1)[0]},7\n" for at in (3, 40)))
    for duplicates in ("mean", "last", "sum"):
        same(
            map_entries(file, tmp_path / duplicates, duplicates=duplicates), read_triplets(file, duplicates=duplicates)
        )
    with pytest.raises(ValueError) as told:
        read_triplets(file)
    with pytest.raises(ValueError) as other:
        map_entries(file, tmp_path / "refused")
    assert str(other.value) == str(told.value).replace(", and so is 1 other", "")  # counted where all are together
    assert "given twice" in str(told.value)
    assert not (tmp_path / "refused" / "entries.json").exists()


@pytest.mark.parametrize("fault", ["5,i3,x\n", "5,,1\n", "5,i3\n", "5,i3,inf\n"])
def test_faults_are_told_as_by_the_reader_in_memory(tmp_path, few_at_a_time, fault):
    file = tmp_path / "r.csv"
    file.write_text(table(40).to_csv(index=False) + fault)
    with pytest.raises(ValueError) as told:
        read_triplets(file)
    with pytest.raises(ValueError) as other:
        map_entries(file, tmp_path / "entries")
    assert str(other.value) == str(told.value)
    assert "line 42" in str(told.value)


def test_written_once_and_again_when_the_source_or_the_question_changes(tmp_path, monkeypatch):
    file, folder = tmp_path / "r.csv", tmp_path / "entries"
    file.write_text(table(50).to_csv(index=False))
    writes = []
    write = mapping.write
    monkeypatch.setattr(mapping, "write", lambda *given: (writes.append(1), write(*given)))
    first = map_entries(file, folder)
    os.utime(file, (1, 1))
    told = f"entries are taken from {folder}, as r.csv is unchanged"
    assert map_entries(file, folder).remarks == (*first.remarks, told)
    assert repr(first) == f"MappedEntries({str(folder)!r}, 50 entries of a {first.shape[0]} × {first.shape[1]} matrix)"
    assert len(writes) == 1
    assert map_entries(file, folder, duplicates="sum").shape == first.shape
    file.write_text(table(60, seed=1).to_csv(index=False))
    assert len(map_entries(file, folder)) == 60
    assert len(writes) == 3
    assert len(first) == len(first.take(np.arange(50))) == 50  # what is mapped stays what it was


def test_what_is_no_file_of_entries_is_told_from_what_is_another_one(tmp_path):
    file, absent = tmp_path / "r.csv.gz", tmp_path / "absent.csv"
    file.write_bytes(b"")
    for reading in (read_triplets, lambda path: map_entries(path, tmp_path / "entries")):
        with pytest.raises(FileNotFoundError, match="No such file"):
            reading(absent)
        with pytest.raises(ValueError, match="is a folder: give a file of entries in it"):
            reading(tmp_path)
        with pytest.raises(ValueError, match=r"entries are (mapped|read) from \.csv, .*\.parquet"):
            reading(file)
    with pytest.raises(
        ValueError, match=r"r\.csv\.gz is a file, and stored entries are a folder: map_entries\(file, directory\)"
    ):
        read_mapped(file)


def test_damaged_foreign_and_busy_folders_are_refused_in_one_line(tmp_path):
    file, folder = tmp_path / "r.csv", tmp_path / "entries"
    file.write_text(table(50).to_csv(index=False))
    map_entries(file, folder)
    for name in ("columns.i4", "values.f8", "starts.i8", "names.json", "entries.json"):
        before = (folder / name).read_bytes()
        for after in (before[:-9], bytes([before[0] ^ 1]) + before[1:]):
            (folder / name).write_bytes(after)
            with pytest.raises(ValueError, match=r"damaged, or no entries that rankfold stored .*remove it") as told:
                map_entries(file, folder)
            assert "\n" not in str(told.value)
        (folder / name).write_bytes(before)
    whole = (folder / "values.f8").read_bytes()
    (folder / "values.f8").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="its files differ in length"):
        read_mapped(folder, check=False)
    (folder / "values.f8").write_bytes(whole)
    (folder / "names.json").unlink()
    with pytest.raises(ValueError, match=r"names\.json is missing"):
        map_entries(file, folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds other files, such as thesis\.tex"):
        map_entries(file, other)
    with claimed(tmp_path / "busy"):
        held = json.loads((tmp_path / "busy" / ".rankfold-claim").read_text())
    (tmp_path / "busy").mkdir(exist_ok=True)
    held["process"] |= {"place": "elsewhere"}
    (tmp_path / "busy" / ".rankfold-claim").write_text(json.dumps(held))
    with pytest.raises(ClaimError, match="is in use by process"):
        map_entries(file, tmp_path / "busy")


def test_a_write_that_ends_early_leaves_nothing_that_counts(tmp_path, monkeypatch):
    file, folder = tmp_path / "r.csv", tmp_path / "entries"
    file.write_text(table(50).to_csv(index=False))
    map_entries(file, folder)
    file.write_text(table(55).to_csv(index=False))
    with monkeypatch.context() as inside:
        inside.setattr(mapped, "write_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            map_entries(file, folder)
    assert len(map_entries(file, folder)) == 55


def test_what_is_held_as_a_whole_is_refused(tmp_path):
    wide = pd.DataFrame(np.random.default_rng(0).random((5, 4)), columns=list("abcd"))
    wide.insert(0, "user", list("vwxyz"))
    wide.to_csv(tmp_path / "wide.csv", index=False)
    with pytest.raises(ValueError, match="a table whose lines are rows of the matrix is held as a whole"):
        map_entries(tmp_path / "wide.csv", tmp_path / "e")
    np.savez(tmp_path / "e.npz", X=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"\.npz arrays are held as a whole"):
        map_entries(tmp_path / "e.npz", tmp_path / "e")


@pytest.mark.parametrize("count", [1, 8, 1003, CHUNK + 13])
def test_bits_are_drawn_read_and_nested(count):
    held = drawn(count, count // 3, np.random.default_rng(0))
    whole = np.concatenate([held[these] for these in held.chunks()])
    assert whole.sum() == count // 3
    assert len(whole) == count
    assert np.array_equal(held[slice(count // 2, count)], whole[count // 2 :])
    rest = held.others()
    assert np.array_equal(rest[slice(0, count)], ~whole)
    size = int((~whole).sum())
    inner = drawn(size, size // 2, np.random.default_rng(1))
    among = inner.among(rest)[slice(0, count)]
    assert among.sum() == size // 2
    assert not (among & whole).any()
    assert np.array_equal(among[~whole], inner[slice(0, size)])
    assert np.array_equal(Bits(inner.among(rest).packed, count).others(rest)[slice(0, count)], ~whole & ~among)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(a mapped table of rank 3 with little noise, its truth)."""
    place = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((900, 3)), rng.standard_normal((3, 700))
    cells = rng.permutation(900 * 700)[:30_000]
    rows, columns = cells // 700, cells % 700
    values = (left @ right)[rows, columns] + 1e-3 * rng.standard_normal(30_000)
    given = pd.DataFrame({"row": rows, "column": columns, "value": values})
    given.to_parquet(place / "planted.parquet")
    return map_entries(place / "planted.parquet", place / "entries"), left @ right


def test_products_and_parts_are_those_of_entries_in_memory(planted):
    found, _ = planted
    whole = found.take(np.arange(len(found)))
    near = Entries(found.shape, whole.rows, whole.columns)
    far = StreamedEntries(found.files, size=2000)
    assert len(far.blocks) > 10
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((900, 4)), rng.standard_normal((4, 700))
    pushed = far.push(left, right)
    assert np.array_equal(np.concatenate([pushed.of(block) for block in pushed.blocks]), near.push(left, right))
    here, there = near.adjoint(whole.values), far.adjoint(far.values)
    assert np.array_equal(there @ right.T, here @ right.T)
    assert np.abs(left.T @ there - left.T @ here).max() < 1e-12
    one, one_y, (held, held_y) = near.apart(whole.values, 1000, np.random.default_rng(5))
    two, two_y, (judge, judge_y) = far.apart(far.values, 1000, np.random.default_rng(5))
    assert np.array_equal(held.columns, judge.columns)
    assert np.array_equal(held_y, judge_y)
    assert two.count == one.count
    assert np.isclose(two_y.norm(), np.linalg.norm(one_y))
    assert all(np.array_equal(a, b) for a, b in zip(one.counts(), two.counts(), strict=True))
    three, _, (last, last_y) = two.apart(two_y, 500, np.random.default_rng(6))
    _, _, (other, other_y) = one.apart(one_y, 500, np.random.default_rng(6))
    assert three.count == len(found) - 1500
    assert np.array_equal(last.rows, other.rows)
    assert np.array_equal(last_y, other_y)


def test_a_fit_to_files_is_the_fit_in_memory(planted, monkeypatch):
    found, truth = planted
    near = LowRank(6).fit(found)
    monkeypatch.setattr("rankfold.recover.mapped.entries.MappedEntries.measurements.__defaults__", (2000,))
    far = LowRank(6).fit(found)
    assert far.rank_ == near.rank_ == 3
    assert far.reason_ == near.reason_
    assert np.abs(far.reconstruct() - near.reconstruct()).max() < 1e-9 * np.abs(truth).max()
    assert np.abs(far.reconstruct() - truth).max() < 0.01
    for other in (AlternatingMinimization(3), NuclearNorm()):
        with pytest.raises(ValueError, match="holds all entries in memory: use LowRank"):
            other.fit(found)


def test_memory_of_a_fit_does_not_grow_with_the_entries(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2000, 2)), rng.standard_normal((2, 300))
    peaks = {}
    monkeypatch.setattr("rankfold.recover.mapped.entries.MappedEntries.measurements.__defaults__", (10_000,))
    monkeypatch.setattr("rankfold.recover.measurements.bits.CHUNK", 8000)
    for count in (100_000, 400_000):
        cells = np.sort(rng.permutation(2000 * 300)[:count])
        given = pd.DataFrame({"row": cells // 300, "column": cells % 300})
        given["value"] = (left @ right)[given.row, given.column]
        given.to_parquet(tmp_path / f"{count}.parquet")
        found = map_entries(tmp_path / f"{count}.parquet", tmp_path / str(count))
        tracemalloc.start()
        fitted = LowRank(2, validation_fraction=2000 / count, max_iter=5).fit(found)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert fitted.rank_ == 2
    assert peaks[400_000] < 12 * 400_000  # what columns and values take
    assert peaks[400_000] - peaks[100_000] < 300_000  # a bit each for two parts


def test_implicit_least_squares_of_files_are_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("rankfold.recover.implicit.als.installed", lambda: False)
    rng = np.random.default_rng(0)
    plays = table(130)[["user", "item"]].assign(plays=rng.integers(1, 5, 130))
    plays.to_csv(tmp_path / "plays.csv", index=False)
    found = map_entries(tmp_path / "plays.csv", tmp_path / "entries", implicit=True, duplicates="sum")
    whole = found.take(np.arange(len(found)))
    monkeypatch.setattr("rankfold.recover.mapped.entries.MappedEntries.parts.__defaults__", (20,))
    near, far = (ImplicitFeedback(rank=4, iterations=3).fit(given) for given in (whole, found))
    assert np.allclose(near.model_.columns, far.model_.columns, atol=1e-12)
    assert [name for name, _ in near.recommend(3, 5)] == [name for name, _ in far.recommend(3, 5)]
    assert len(list(found.parts())) > 5
    with pytest.raises(ValueError, match="neighbours holds all entries in memory: use als"):
        ImplicitFeedback("neighbours").fit(found)
    with pytest.raises(ValueError, match=r"lie in files, .*: map the longer table"):
        far.partial_fit([(3, "i1")])


def test_the_command_line_within_a_bound_of_memory(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 50))
    rows, columns = np.nonzero(rng.random(truth.shape) < 0.5)
    given = pd.DataFrame({"user": rows, "item": columns, "rating": truth[rows, columns]})
    file, out, asked = tmp_path / "r.csv", tmp_path / "out", tmp_path / "asked.csv"
    given[:-9].to_csv(file, index=False)
    given[-9:].to_csv(asked, index=False)
    common = (file, "--memory", "1GB", "--ranks", "4", "-o", out)
    report = succeeded("recover", *common, "--test", asked, "--predict", asked, "--top", "2")
    assert (report["rank"], report["entries"]) == (2, len(given) - 9)
    assert report["held_out_error"] < 1e-6 > report["test"]["error"]
    written = pd.read_csv(out / "predictions.csv").sort_values(["user", "item"])
    assert np.allclose(written["predicted"], given[-9:].sort_values(["user", "item"])["rating"], atol=1e-4)
    best = pd.read_csv(out / "top.csv")
    taken = set(map(tuple, given[:-9][["user", "item"]].to_numpy()))
    assert len(best) == 2 * 60
    assert not taken & set(map(tuple, best[["user", "item"]].to_numpy()))
    with pytest.raises(
        ValueError, match=r"100\.0 MB of it for blocks .* --memory allows .* MB: give at least --memory 101MB, or"
    ):
        complete_mapped(map_entries(file, out / "entries"), out, memory=100_000_001)
    assert "--memory 1,000,000 bytes is too little: blocks of entries alone take 100 MB" in failed(
        "recover", file, "--memory", "1000000", "-o", tmp_path / "none"
    )
    assert not (tmp_path / "none").exists()  # nothing was read

    assert "--time is for the method ratings" in rankfold("recover", *common, "--time").stderr
    assert "--folds is for choosing among methods" in rankfold("recover", *common, "--folds", "5").stderr
    assert "give --ranks 4 instead of --ranks 2,4" in rankfold("recover", *common, "--ranks", "2,4").stderr
    assert "--memory does not go with --implicit" in rankfold("recover", *common[:3], "--implicit").stderr
    assert "the method is low-rank" in rankfold("recover", *common, "--methods", "ratings").stderr
