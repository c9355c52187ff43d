"""A single name is one name wherever names are taken, lengths that do not fit are told, and so is what is unknown."""

import re

import numpy as np
import pytest
import scipy.sparse
from commands import succeeded

from rankfold.recover import (
    Choice,
    Gaussian,
    LowRank,
    Ratings,
    choices,
    fit,
    load,
    map_entries,
    read_pairs,
    read_plays,
    read_triplets,
    triplets,
)
from rankfold.recover.model import FactorModel

PAIRS = [(u, i) for u in range(9) for i in range(7) if (2 * u + 3 * i) % 5]
TABLE = triplets([f"u{u}" for u, _ in PAIRS], [f"Film {i}" for _, i in PAIRS], [(1 + u) * (2.0 + i) for u, i in PAIRS])
MODEL = fit(TABLE, Choice("low-rank", 1))[0]


@pytest.mark.parametrize("row", ["u3", np.str_("u3"), b"u3", ["u3"], ("u3",), np.array("u3"), np.array(["u3"])])
def test_a_single_name_is_one_name_and_not_its_letters(row):
    assert MODEL.predict(row, "Film 2").tolist() == pytest.approx([16.0])
    assert MODEL.predict(row, ["Film 2", "Film 3"]).tolist() == pytest.approx([16.0, 20.0])
    assert MODEL.predict(["u3", "u1"], "Film 2").tolist() == pytest.approx([16.0, 8.0])
    assert MODEL.predict(row, []).shape == MODEL.predict([], "Film 2").shape == (0,)


def test_numbers_are_names_of_one_row_too():
    model = fit(triplets([7, 7, 8], ["x", "y", "x"], [1.0, 2.0, 3.0]), Choice("low-rank", 1))[0]
    for row in (7, 7.0, np.int64(7), "7", np.array(7.0)):
        assert model.predict(row, "y") == pytest.approx([2.0])
        assert model.top(row, 1) == [("y", pytest.approx(2.0))]


def test_a_single_time_counts_for_all_pairs():
    pairs = [[u, i] for u, i in PAIRS]
    made = Ratings(1, burn_in=3, draws=5).fit(pairs, TABLE.values, times=np.repeat([0.0, 9e8], [30, len(pairs) - 30]))
    told = made.model_.predict(0, [1, 2], 9e8)
    assert told.tolist() == made.model_.predict([0, 0], [1, 2], ["1998-07-09T16:00:00"] * 2).tolist()
    assert made.model_.uncertainty(0, [1, 2]).shape == (2,)
    with pytest.raises(ValueError, match="times must be 2 numbers of seconds"):
        made.model_.predict(0, [1, 2], [0.0, 1.0, 2.0])


def test_numbers_of_other_lengths_and_names_for_numbers_are_told():
    found = LowRank(1).fit(TABLE)
    told = "2 rows were given for 3 columns: give as many, or a single one"
    for ask, names in ((MODEL.predict, "u"), (MODEL.at, 0), (MODEL.uncertainty, 0), (found.at, 0)):
        if ask == MODEL.uncertainty:
            continue  # it has none
        some = [f"{names}{at}" if names else at for at in range(3)]
        with pytest.raises(ValueError, match=told):
            ask(some[:2], some)
    for ask in (MODEL.at, found.at):
        with pytest.raises(ValueError, match=r"whole numbers here, from 0.* names go into predict"):
            ask("u0", "Film 1")
        assert ask(3, [2, 3]).tolist() == pytest.approx([16.0, 20.0])
        assert ask(3, 2).tolist() == pytest.approx([16.0])
    with pytest.raises(ValueError, match="lies deeper, as pairs do"):
        MODEL.predict([["u0", "Film 1"]], ["Film 1"])


def test_the_best_columns_of_an_unknown_row_are_told_to_be_those_of_an_average_one():
    with pytest.warns(UserWarning, match="row 'U3' is not among the 9 that were fitted.*of an average one"):
        assert len(MODEL.top("U3", 2)) == 2
    with pytest.raises(ValueError, match="of one row, got 2 names"):
        MODEL.top(["u1", "u2"], 1)
    with pytest.raises(ValueError, match="count must be at least 1, got -1"):
        MODEL.top("u3", -1)


@pytest.mark.parametrize(
    "without",
    ["Film 6", ["Film 6"], 6, [6], {6}, {"Film 6"}, np.array([6]), np.array(["Film 6"]), (one for one in [6])],
)
def test_columns_are_left_out_by_number_or_by_name(without):
    assert [name for name, _ in MODEL.top("u3", 2, without)] == ["Film 5", "Film 4"]


@pytest.mark.parametrize("without", ["film 6", [0, 7], -1])
def test_columns_to_leave_out_that_are_not_there_are_told(without):
    with pytest.raises(ValueError, match=r"column .*, to be left out, is not among the 7 that were fitted"):
        MODEL.top("u3", 2, without)


def test_columns_of_a_file_in_one_text_are_parted_at_commas(tmp_path):
    file, pairs = tmp_path / "r.csv", tmp_path / "p.csv"
    file.write_text("stars,who,what\n4,ann,a\n2,bob,b\n")
    pairs.write_text("what,who\na,ann\n")
    whole, names = read_triplets(file, columns=["who", "what", "stars"]), "who, what,stars"
    for found in (read_triplets(file, columns=names), map_entries(file, tmp_path / "entries", columns=names)):
        assert (found.row_names, found.column_names) == (whole.row_names, whole.column_names)
    assert read_plays(file, columns=names).row_names == read_pairs(file, columns="who,what").row_names == ("ann", "bob")
    assert read_pairs(pairs, columns=names).column_names == ("a",)
    assert choices("low-rank", [1], (3, 3)) == choices(["low-rank"], [1], (3, 3))


def test_a_folder_without_factors_is_told_with_what_reads_it(tmp_path):
    file = tmp_path / "plays.csv"
    file.write_text("user,item\n" + "".join(f"u{u},i{(u + k) % 9}\n" for u in range(12) for k in range(4)))
    succeeded("recover", file, "--implicit", "--methods", "regression", "-o", tmp_path / "ranked")
    told = "holds a ranking of implicit feedback.*top.csv.*ImplicitFeedback fitted again.*: regression, regularization"
    with pytest.raises(ValueError, match=told):
        load(tmp_path / "ranked")
    map_entries(file, tmp_path / "entries", implicit=True)
    with pytest.raises(ValueError, match=r"holds entries, which rankfold\.recover\.read_mapped reads"):
        load(tmp_path / "entries")
    with pytest.raises(
        FileNotFoundError, match=re.escape("has no factors.safetensors, and it holds entries, plays.csv")
    ):
        load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it is empty"):
        load(tmp_path / "empty")
    operator = Gaussian((8, 6), 40, seed=0)
    y = operator.push(np.ones((8, 1)), np.ones((1, 6)))
    np.savez(tmp_path / "y.npz", y=y, seed=0, count=40, shape=(8, 6))
    succeeded("recover", tmp_path / "y.npz", "-o", tmp_path / "sensed")
    with pytest.raises(ValueError, match=r"factors of measurements.*without names.*left @ right"):
        load(tmp_path / "sensed")


def test_of_equal_predictions_the_leftmost_are_the_best_of_one_row_and_of_all():
    names = tuple(f"i{number}" for number in range(400))
    model = FactorModel(np.ones((4, 1)), np.ones((1, 401)), 0.0, -9.0, 9.0, ("a", "b", "c"), names)
    known = scipy.sparse.csr_array(([1.0], ([1], [1])), shape=(3, 400))
    assert [at.tolist() for _, at, _ in model.best(3, known)] == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
    assert [name for name, _ in model.top("b", 3, without=[1])] == ["i0", "i2", "i3"]
