"""What is handed over is read as it is meant, in every form that it comes in, or refused with the remedy."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

from rankfold.recover import (
    AlternatingMinimization,
    Choice,
    Gaussian,
    LowRank,
    Mask,
    Measurements,
    fit,
    map_entries,
    triplets,
)
from rankfold.recover.measurements.observed import observed

MATRIX = np.outer(np.arange(1, 9), np.arange(1, 7.0))
KNOWN = np.random.default_rng(0).random(MATRIX.shape) < 0.7
ROWS, COLUMNS = np.nonzero(KNOWN)
TOLD = triplets(ROWS, COLUMNS, MATRIX[KNOWN])
STORED = scipy.sparse.coo_array((MATRIX[KNOWN], (ROWS, COLUMNS)), shape=MATRIX.shape)


def off(found):
    return np.abs(found.reconstruct() - MATRIX).max()


@pytest.mark.parametrize("form", ["coo", "csr", "csc", "lil", "dok"])
def test_zeros_that_are_stored_are_known(form):
    at = scipy.sparse.coo_array(([1.0, 0, 2, 0, 3], ([0, 0, 1, 1, 2], [0, 1, 0, 1, 1])), shape=(3, 2))
    operator, y = observed(at.asformat(form))
    assert operator.count == 5
    assert np.array_equal(operator.mask, [[1, 1], [1, 1], [0, 1]])
    assert np.array_equal(y, [[1, 0], [2, 0], [0, 3]])
    assert off(LowRank(3).fit(STORED.asformat(form))) < 1e-8


def test_formats_that_do_not_say_which_zeros_are_known_are_refused():
    found = LowRank(3).fit(STORED)
    for form in (STORED.todia(), scipy.sparse.bsr_array(STORED, blocksize=(2, 2)), scipy.sparse.bsr_matrix(STORED)):
        for method in (LowRank(3).fit, AlternatingMinimization(1).fit, found.transform, found.score):
            with pytest.raises(ValueError, match=f"the format '{form.format}' does not say which zeros .* csr or csc"):
                method(form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a beta
        tensor = torch.from_numpy(STORED.toarray()).to_sparse_bsr((2, 2))
    with pytest.raises(ValueError, match=r"layout torch.sparse_bsr does not say which zeros .* sparse_csr tensor"):
        LowRank(3).fit(tensor)


@pytest.mark.parametrize("form", ["coo", "csr", "csc"])
def test_nan_that_is_stored_is_not_known(form):
    holed = STORED.copy()
    holed.data[[0, 7]] = np.nan
    found = LowRank(3).fit(holed.asformat(form))
    assert observed(holed.asformat(form))[0].count == len(TOLD) - 2
    assert off(found) < 1e-8
    assert np.abs(found.transform(holed.asformat(form)) - MATRIX).max() < 1e-8
    holed.data[3] = np.inf
    at = f"the entry at row {ROWS[3]}, column {COLUMNS[3]} is inf: leave it out, or write NaN"
    with pytest.raises(ValueError, match=at):
        observed(holed.asformat(form))
    holed.data[:] = np.nan
    with pytest.raises(ValueError, match="nothing is known"):
        observed(holed.asformat(form))


SENSED = scipy.sparse.random_array((40, 48), density=0.4, rng=np.random.default_rng(1), format="csr")


@pytest.mark.parametrize("kind", [None, np.empty(0, np.float32), torch.empty(0, dtype=torch.float64)])
@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "coo_matrix", "csr_array", "bsr_array", "dia_array"])
def test_sparse_measurements_of_every_form_measure_alike(form, kind):
    operator = Measurements(getattr(scipy.sparse, form)(SENSED), kind, MATRIX.shape)
    plain = Measurements(SENSED.toarray().reshape(-1, *MATRIX.shape))
    assert operator.scale == pytest.approx(plain.scale, rel=1e-6)
    found = LowRank(2, tol=1e-6).fit(operator, SENSED @ MATRIX.ravel())
    assert found.rank_ == 1
    assert off(found) < 1e-3
    part, take = operator.part(np.arange(5, 9))
    left, right = found.left_, found.right_
    if isinstance(kind, torch.Tensor):
        left, right = torch.from_numpy(left), torch.from_numpy(right)
    assert np.allclose(part.push(left, right), take(operator.push(left, right)))


def test_the_scale_of_sparse_measurements_is_that_of_their_numbers():
    square = scipy.sparse.csr_matrix(SENSED[:30, :30])  # whose square would be a product, and no error
    whole = Measurements(square.toarray().reshape(30, 6, 5)).scale
    assert Measurements(square, shape=(6, 5)).scale == pytest.approx(whole)
    halves = scipy.sparse.coo_array((np.full(2, 0.5), ([0, 0], [3, 3])), shape=(1, 30))  # one entry, of 1
    assert Measurements(halves, shape=(6, 5)).scale == pytest.approx(1 / 30)
    small = scipy.sparse.csr_array(np.full((1, 30), 100, dtype=np.int8))  # whose squares are beyond its type
    assert Measurements(small, shape=(6, 5)).scale == pytest.approx(100**2)


def test_numbers_that_no_row_or_column_has_are_refused():
    found = LowRank(1).fit(TOLD)
    others = triplets(["3", "someone"], ["2", "1"], [1.0, 2.0]).numbered(TOLD.row_names, TOLD.column_names)
    with pytest.raises(ValueError, match="entry 1: its row must be from 0 to 7, got -1, which stands for one that is"):
        found.at(*others)
    with pytest.raises(ValueError, match="entry 0: its column must be from 0 to 5, got 6"):
        found.at(0, [6, 1])
    assert found.at([7, 0], [5, 0]) == pytest.approx([48.0, 1.0])


def test_a_model_knows_one_number_for_what_is_unknown():
    model, _, _ = fit(TOLD, Choice("low-rank", 1))
    unknown = model.at(np.array([-1]), np.array([0]))
    assert unknown == pytest.approx(model.predict(["someone"], ["0"]))
    for row in (8, 9, -2):
        with pytest.raises(ValueError, match=f"entry 1: its row must be from -1 to 7, got {row}"):
            model.at(np.array([0, row]), np.array([0, 0]))
    with pytest.raises(ValueError, match="entry 0: its column must be from -1 to 5, got 6"):
        model.at(np.array([0]), np.array([6]))


def test_a_device_computes_triplets_too(monkeypatch):
    kinds = []

    class Looking(LowRank):
        def _recover(self, operator, y, seed):
            kinds.append(type(y))
            return super()._recover(operator, y, seed)

    for x in (TOLD, STORED):
        assert off(Looking(3, device="cpu").fit(x)) < 1e-8
        assert off(Looking(3).fit(x)) < 1e-8
    monkeypatch.setattr("rankfold.recover.measurements.operators.DENSE_BELOW", 0)
    monkeypatch.setattr("rankfold.recover.measurements.operators.DENSE_FROM", 2.0)
    assert off(Looking(3, device="cpu").fit(TOLD)) < 1e-8
    assert kinds == [torch.Tensor, np.ndarray, torch.Tensor, np.ndarray, torch.Tensor]


def test_a_device_that_is_not_there_or_has_nothing_to_do_is_told(tmp_path, monkeypatch):
    for x in (TOLD, STORED, np.where(KNOWN, MATRIX, np.nan)):
        for device in ("nonsense", "meta", 1.5):
            with pytest.raises(ValueError, match=f"torch cannot compute in float64 on {device!r} here: give 'cpu'"):
                LowRank(1, device=device).fit(x)
    for operator in (Gaussian(MATRIX.shape, 40, 0), Mask(KNOWN.astype(float))):
        y = operator.push(np.arange(1, 9.0)[:, None], np.arange(1, 7.0)[None])
        assert off(LowRank(1).fit(operator, y)) < 1e-6
        with pytest.raises(ValueError, match=r"device 'cpu' is for matrices and triplets.*leave device out"):
            LowRank(1, device="cpu").fit(operator, y)
    file = tmp_path / "entries.csv"
    lines = (f"{row},{column},{value}" for row, column, value in zip(ROWS, COLUMNS, MATRIX[KNOWN], strict=True))
    file.write_text("user,film,rating\n" + "\n".join(lines))
    mapped = map_entries(file, tmp_path / "mapped")
    monkeypatch.setattr("rankfold.recover.mapped.entries.MappedEntries.measurements.__defaults__", (10,))
    assert off(LowRank(1).fit(mapped)) < 1e-6
    with pytest.raises(ValueError, match=r"device 'cpu' is not for entries in files.*read_triplets"):
        LowRank(1, device="cpu").fit(mapped)
