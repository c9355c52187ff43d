"""Predictions are bounded where something speaks for a bound: a scale, or a fit that leaves much open; else they are
what Python's estimator says."""

import math

import numpy as np
import pytest
from commands import succeeded

from rankfold.recover import Choice, LowRank, cross_validate, fit, load, triplets
from rankfold.recover.scale import Seen


@pytest.fixture(scope="module")
def heavy():
    """A positive matrix of rank one, half of it known, and none of its thirty largest values."""
    rng = np.random.default_rng(5)
    truth = np.outer(rng.lognormal(0, 1, 80), rng.lognormal(0, 1, 60))
    known = rng.random(truth.shape) < 0.5
    known.reshape(-1)[np.argsort(-truth, axis=None)[:30]] = False
    return truth, known


def test_large_missing_values_of_an_exact_matrix_are_found(tmp_path, heavy):
    truth, known = heavy
    np.save(tmp_path / "x.npy", np.where(known, truth, np.nan))
    rows, columns = np.nonzero(~known)
    np.savez(tmp_path / "t.npz", rows=rows, columns=columns, values=truth[~known], shape=truth.shape)
    given = (tmp_path / "x.npy", "--methods", "low-rank", "--folds", "2", "--test", tmp_path / "t.npz")
    report = succeeded("recover", *given, "-o", tmp_path / "out")
    assert report["test"]["error"] < 1e-6  # it was 1.2
    assert "cut" not in report["how"]
    model = load(tmp_path / "out")
    assert (model.low, model.high) == (-math.inf, math.inf)
    told = LowRank().fit(np.where(known, truth, np.nan)).reconstruct()
    assert np.abs(model.at(rows, columns) - told[~known]).max() < 1e-6
    assert told[~known].max() > 2 * truth[known].max() - truth[known].min()


def test_the_same_from_files_on_disk(tmp_path, heavy):
    truth, known = heavy
    rows, columns = np.nonzero(known)
    lines = [f"r{i},c{j},{truth[i, j]!r}" for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
    (tmp_path / "x.csv").write_text("row,column,value\n" + "\n".join(lines).replace("np.float64(", "").replace(")", ""))
    report = succeeded("recover", tmp_path / "x.csv", "--memory", "1GB", "--ranks", "3", "-o", tmp_path / "out")
    model = load(tmp_path / "out")
    at, to = np.unravel_index(np.argmax(truth), truth.shape)
    assert model.predict([f"r{at}"], [f"c{to}"])[0] == pytest.approx(truth.max(), rel=1e-6)
    assert "cut" not in report["how"]


def test_ratings_stay_on_their_scale_and_other_noise_within_a_range():
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(rng.random((60, 40)) < 0.2)
    values = np.clip(np.round(3 + 1.5 * rng.standard_normal(len(rows))), 1, 5)
    told = triplets(rows, columns, values)
    model, _, how = fit(told, Choice("alternating", 5))
    assert (model.low, model.high) == (1, 5)
    assert "predictions are cut to the scale of the values, 1 to 5" in how
    steep = cross_validate(told, [Choice("alternating", 5)], folds=2, seed=0)[0]
    assert steep.error < 3  # a prediction off the scale would miss by more
    other = triplets(rows, columns, values + 0.3 * rng.random(len(rows)))
    model, _, how = fit(other, Choice("alternating", 5))
    span = other.values.max() - other.values.min()
    assert model.high == pytest.approx(other.values.max() + span)
    assert "one range beyond the known values" in how


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 2, 3, 4, 5], True),
        ([0.5, 1, 4, 4.5, 5], True),
        ([-10, -9.5, 2], True),
        ([0, 20, 100], True),
        ([1, 2, 3.3], False),
        ([0, 1, 1000], False),
    ],
)
def test_a_scale_has_few_values_of_even_steps(values, scale):
    many = np.tile(np.array(values, dtype=float), 5)
    expected = scale and (max(values) - min(values)) / np.diff(np.unique(many)).min() <= 24
    assert Seen.of([many[:7], many[7:]]) == Seen(min(values), max(values), expected)
    assert not Seen.of([many[: len(values)]]).scale  # each once: no sign of a scale
