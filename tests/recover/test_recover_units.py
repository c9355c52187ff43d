"""Ratings in another unit are the same ratings, and those that hardly differ, or not at all, are sampled too."""

import numpy as np
import pytest
import torch
from commands import succeeded

from rankfold.recover import Choice, CompressedDeepLinear, Ratings, fit, load, triplets
from rankfold.recover.ratings.sampler import DEVIATION, drawn, sample


def planted(seed=0, users=40, items=30):
    """(pairs, values, times, held-out pairs, their values): rank 2 and biases, noise of .1, a half known."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((users, 2)) @ rng.standard_normal((2, items)) + rng.standard_normal((users, 1))
    pairs = np.argwhere(np.ones(truth.shape))
    values = truth.ravel() + 0.1 * rng.standard_normal(truth.size)
    known = rng.random(len(pairs)) < 0.5
    times = 86_400.0 * rng.integers(0, 3, int(known.sum()))
    return pairs[known], values[known], times, pairs[~known], values[~known]


@pytest.mark.parametrize(
    ("scale", "shift", "timed"),
    [
        (1e-6, 0.0, False),
        (1e-3, 0.0, True),
        (10.0, 0.0, False),
        (1e6, 0.0, True),
        (1.0, 50.0, False),
        (1e3, -1e4, True),
    ],
)
def test_ratings_in_another_unit_are_the_same_ratings(scale, shift, timed):
    pairs, values, times, asked, truth = planted()
    new = [["nobody", 3], [3, "nothing"], ["nobody", "nothing"]]

    def found(given):
        model = Ratings(2, burn_in=8, draws=12).fit(pairs, given, times=times if timed else None)
        told = [model.predict(asked, return_std=True), model.predict(new, return_std=True)]
        before = model.noise_, np.array(model.history_)
        model.partial_fit([["late", 0], ["late", 1], ["late", 2]], given[:3])
        told.append(model.predict([["late", 5], ["late", 6]], return_std=True))
        return *(np.concatenate(each) for each in zip(*told, strict=True)), *before

    plain, other = found(values), found(scale * values + shift)
    assert np.allclose(other[0], scale * plain[0] + shift, rtol=0, atol=1e-5 * scale)
    for one, same in zip(plain[1:], other[1:], strict=True):
        assert np.allclose(same, scale * one, rtol=1e-5, atol=0)
    assert np.sqrt(np.mean((plain[0][: len(truth)] - truth) ** 2)) < 0.25 * truth.std()


def test_draws_are_in_a_unit_in_which_the_values_of_movielens_are_left_as_they_are():
    pairs, values, _, _, _ = planted()
    given = values / values.std() * DEVIATION
    how = {"rank": 2, "burn_in": 4, "draws": 4, "strength": 2.0, "seed": 0}
    one, ten = (sample(pairs[:, 0], pairs[:, 1], s * given, (40, 30), **how) for s in (1.0, 10.0))
    assert (one.unit, ten.unit) == (pytest.approx(1.0), pytest.approx(10.0))
    assert np.allclose(one.lefts, ten.lefts, atol=1e-4)
    assert ten.noise == pytest.approx(10 * one.noise)


@pytest.mark.parametrize("value", [2.0, 0.1, 0.0, -1e30])
def test_of_equal_values_every_other_is_the_same(value):
    pairs = triplets(["a", "b", "c", "d"], ["x", "y", "x", "y"], [value] * 4)
    for seed in range(4):
        model = fit(pairs, Choice("ratings", 2), seed=seed)[0]
        assert model.predict(["a", "d", "who"], ["y", "x", "x"]).tolist() == [value] * 3
        assert np.isfinite(model.uncertainty(np.array([0, -1]), np.array([1, 0]))).all()


@pytest.mark.parametrize("scale", [1e30, 1e100, 1e-100])
def test_values_beyond_single_precision_are_sampled(scale):
    pairs, values, _, asked, truth = planted()
    told, deviation = Ratings(2, burn_in=8, draws=12).fit(pairs, scale * values).predict(asked, return_std=True)
    assert np.sqrt(np.mean((told / scale - truth) ** 2)) < 0.25 * truth.std()
    assert (deviation > 0).all()
    assert (deviation / scale < 3).all()


def test_a_table_of_which_a_fold_is_constant_is_recovered(tmp_path):
    file = tmp_path / "k.csv"
    file.write_text("user,item,rating\na,x,3\na,y,3\nb,x,3\nb,y,3\nc,x,3\nc,y,4\n")
    succeeded("recover", file, "-o", tmp_path / "out")
    told = load(tmp_path / "out").predict(["a", "b", "c"], ["x", "y", "x"])
    assert ((told >= 3) & (told <= 4)).all()


def test_systems_too_coarse_for_single_precision_are_solved_in_double():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((5, 1, 4))).float()
    systems = 1e12 * x.transpose(1, 2) @ x + torch.eye(4)  # of rank one to single precision
    assert torch.linalg.cholesky_ex(systems)[1].any()
    right, normals = (
        torch.from_numpy(rng.standard_normal((5, 4))).float(),
        torch.from_numpy(rng.standard_normal((5, 4))),
    )
    told = drawn(systems, right, normals)
    assert torch.isfinite(told).all()
    # what the systems determine they say all the same
    along = torch.einsum("ij,ij->i", told.double(), x[:, 0].double() / x[:, 0].double().norm(dim=1, keepdim=True))
    assert along.abs().max() < 1e-2
    good = torch.eye(4)[None] * torch.tensor([1.0, 4.0])[:, None, None]
    told = drawn(good, right[:2], torch.zeros(2, 4))
    assert torch.allclose(told.float(), right[:2] / torch.tensor([[1.0], [4.0]]))


@pytest.mark.parametrize("method", ["low-rank", "compressed-deep-linear", "alternating", "nuclear", "scaled-gd"])
def test_a_matrix_in_another_unit_is_the_same_matrix(method):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 40)) + 3
    known = rng.random(truth.shape) < 0.35
    (rows, columns), others = np.nonzero(known), np.nonzero(~known)
    values = truth[known] + 0.1 * rng.normal(size=len(rows))
    missed = []
    for unit in (1e3, 1.0, 1e-2, 1e-4):
        found, _, _ = fit(triplets(rows, columns, unit * values, shape=truth.shape), Choice(method, 3))
        missed.append(float(np.sqrt(np.mean((found.at(*others) / unit - truth[~known]) ** 2))))
    assert max(missed) < 1.02 * min(missed)
    assert method == "nuclear" or max(missed) < 0.09


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_patience_waits_for_a_direction_that_is_still_growing(unit):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 40)) + 3
    given = np.where(rng.random(truth.shape) < 0.35, unit * truth, np.nan)
    found = CompressedDeepLinear(3, validation_fraction=0.05).fit(given)
    assert found.validation_error_ < 0.01
    assert found.rank_ == 3
