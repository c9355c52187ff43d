"""What is told of a recovery is true of the factors that are returned, and a run that failed is not called a result."""

import numpy as np
import pytest
from sklearn.utils import check_random_state

from rankfold.recover import (
    AlternatingMinimization,
    CompressedDeepLinear,
    NuclearNorm,
    ScaledGradientDescent,
)
from rankfold.recover.measurements.observed import held_apart, observed

NOISY = [AlternatingMinimization(6), ScaledGradientDescent(5), NuclearNorm(), CompressedDeepLinear(6)]


def half(seed, noise=0.0):
    """(M, X): a random matrix of rank 2, and X with NaN for half of it."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
    x = np.where(rng.random(matrix.shape) < 0.5, matrix, np.nan)
    return matrix, x + noise * rng.standard_normal(x.shape)


def off(found, matrix):
    return np.linalg.norm(found.reconstruct() - matrix) / np.linalg.norm(matrix)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_descent_with_half_the_rate_is_judged_as_if_it_were_the_first(seed):
    matrix, x = half(seed)
    found = CompressedDeepLinear(2, validation_fraction=0.05).fit(x)
    gone = [then.iteration - before.iteration for before, then in zip(found.history_, found.history_[1:], strict=False)]
    assert max(gone) > 20, "no rate was halved here: take another seed"
    assert found.converged_
    assert off(found, matrix) < 1e-8
    assert found.validation_error_ < 1e-8


@pytest.mark.parametrize("estimator", NOISY, ids=repr)
@pytest.mark.parametrize("seed", [0, 2])
def test_patience_that_ends_before_anything_was_learned_is_no_result(estimator, seed):
    rng = np.random.default_rng(seed)
    noise = np.where(rng.random((40, 30)) < 0.5, rng.standard_normal((40, 30)), np.nan)
    found = estimator.set_params(validation_fraction=0.1).fit(noise)
    assert found.n_iter_ < found.max_iter
    assert not found.converged_
    assert "about that of zeros: nothing was learned: raise patience" in found.reason_
    assert found.set_params(validation_fraction=0.1).fit(half(0, noise=0.3)[1]).converged_


@pytest.mark.parametrize("estimator", NOISY, ids=repr)
def test_the_errors_are_those_of_the_factors_that_are_returned(estimator):
    _, x = half(0, noise=0.3)
    found = estimator.set_params(validation_fraction=0.1).fit(x)
    assert found.validation_error_ < found.history_[-1].validation, "the last is the best here: take another seed"
    operator, y = observed(x)
    part, part_y, judge = held_apart(operator, y, 0.1, int(check_random_state(0).randint(2**31 - 1)))
    for error, (measured, values) in ((found.training_error_, (part, part_y)), (found.validation_error_, judge)):
        missed = measured.push(found.left_, found.right_) - values
        assert np.isclose(error, np.linalg.norm(missed) / np.linalg.norm(values), rtol=1e-6)


def test_the_path_of_the_nuclear_norm_is_as_long_as_asked_and_max_iter_bounds_its_steps():
    _, x = half(0, noise=0.1)
    long = NuclearNorm(path=150).fit(x)
    assert (long.n_iter_, long.converged_) == (150, True)
    short = NuclearNorm(max_iter=2).fit(x)
    assert (short.n_iter_, short.converged_) == (20, False)
    assert "its 2 steps were too few" in short.reason_
    assert "raise max_iter" in short.reason_
    ended = NuclearNorm(path=3, validation_fraction=0.1).fit(x)
    assert ended.n_iter_ == 3
    assert "the penalty was lowered down" in ended.reason_


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_the_nuclear_norm_is_as_near_in_single_precision(seed):
    matrix, x = half(seed)
    double, single = NuclearNorm().fit(x), NuclearNorm().fit(x.astype(np.float32))
    assert single.left_.dtype == np.float32
    assert np.isclose(off(single, matrix), off(double, matrix), rtol=0.01)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(
    "estimator", [AlternatingMinimization(2), ScaledGradientDescent(2), CompressedDeepLinear(2)], ids=repr
)
def test_single_precision_ends_where_it_rounds(estimator, device):
    matrix, x = half(0)
    found = estimator.set_params(device=device).fit(x.astype(np.float32))
    assert found.converged_
    assert "as small as rounding allows" in found.reason_
    assert off(found, matrix) < 2e-6
    assert found.n_iter_ < found.max_iter / 2
