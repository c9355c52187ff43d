"""The convex programs of recovery: an interior-point method, an independent gradient method, and their certificates."""

import math
import warnings

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.linalg import NonFiniteError, nuclear_fit_rows, nuclear_max_norm, nuclear_tobit
from rankfold.linalg.programs.certificate import program
from rankfold.linalg.programs.entrywise import Squares, Tobit, conjugate, hazard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cvxpy

seeds = st.integers(0, 2**31)
SIGMA = 0.5


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nuclear(a):
    return float(torch.linalg.svdvals(a).sum())


def case(name):
    """Inputs 14 × 6, outputs 14 × 7, radius and bound: neither binds, both do, or the inputs are dependent."""
    x, truth = draw(14, 6, seed=1), draw(6, 2, seed=2) @ draw(2, 7, seed=3) / 2
    if name == "dependent":
        x = x[:, :4] @ draw(4, 6, seed=4) / 2
    y = x @ truth + 0.5 * draw(14, 7, seed=5)
    fitted = x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    radius, bound = nuclear(fitted), float(fitted.abs().max())
    return (x, y, 3 * radius, 3 * bound) if name == "free" else (x, y, 0.6 * radius, 0.35 * bound)


CASES = ["free", "both", "dependent"]


def squares_reference(x, y, radius, bound):
    """By an interior-point method, in an orthonormal basis that numpy finds."""
    u, s, _ = np.linalg.svd(x.numpy(), full_matrices=False)
    u = u[:, s > 1e-9 * s[0]]
    wanted = u.T @ y.numpy()
    b, limits = in_coordinates(u, y, radius, bound)
    problem = cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.sum_squares(b - wanted)), limits)
    solve(problem)
    return problem.value + (float(y.square().sum()) - float((wanted**2).sum())) / 2


def in_coordinates(u, y, radius, bound):
    b = cvxpy.Variable((u.shape[1], y.shape[1]))
    return b, [cvxpy.normNuc(b) <= radius] + ([cvxpy.abs(u @ b) <= bound] * (bound < math.inf))


def solve(problem):
    """To 1e-9, or as near as it comes, of which it warns; what it finds is compared to 1e-6."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(cvxpy.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert problem.status in ("optimal", "optimal_inaccurate")


def naive_tobit(y, s, sigma):
    """σ² times the negative log-likelihood and its slope, with numpy and scipy alone."""
    t = s / sigma
    hidden = -(sigma**2) * scipy.special.log_ndtr(-t)
    slope = sigma * np.exp(-(t**2) / 2 - math.log(math.sqrt(2 * math.pi)) - scipy.special.log_ndtr(-t))
    return np.where(y > 0, (s - y) ** 2 / 2, hidden), np.where(y > 0, s - y, slope)


def tobit_reference(x, y, radius, bound, sigma):
    """Projected gradients with momentum; what is outside the feasible set is projected by an interior-point method."""
    x, y = x.numpy(), y.numpy()
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    u = u[:, s > 1e-9 * s[0]]
    b, limits = in_coordinates(u, y, radius, bound)
    wanted = cvxpy.Parameter(b.shape)
    projection = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(b - wanted)), limits)
    point = ahead = np.zeros(b.shape)
    momentum, solved = 1.0, 0
    for _ in range(20_000):
        before, point = point, ahead - u.T @ naive_tobit(y, u @ ahead, sigma)[1]
        if np.linalg.norm(point, "nuc") > radius or np.abs(u @ point).max() > bound:
            wanted.value, solved = point, solved + 1
            solve(projection)
            point = b.value
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = point + (momentum - 1) / following * (point - before), following
        if solved == 60:
            break
    return float(naive_tobit(y, u @ point, sigma)[0].sum())


def is_certified(fit, x, radius, bound):
    outputs = x @ fit.weight.mT
    return (
        nuclear(outputs) <= radius * (1 + 1e-9)
        and float(outputs.abs().max()) <= bound * (1 + 1e-9)
        and fit.dual <= fit.primal * (1 + 1e-12)
        and fit.gap == pytest.approx(max(fit.primal - fit.dual, 0) / fit.primal)
    )


@pytest.mark.parametrize("name", CASES)
def test_squares_reach_the_optimum_of_an_interior_point_method(name):
    x, y, radius, bound = case(name)
    fit = nuclear_max_norm(x, y, radius=radius, bound=bound, tolerance=1e-8)
    assert fit.converged
    assert is_certified(fit, x, radius, bound)
    expected = squares_reference(x, y, radius, bound)
    assert fit.primal == pytest.approx(expected, rel=1e-6)
    assert fit.primal == pytest.approx(float((y - x @ fit.weight.mT).square().sum()) / 2)
    assert fit.dual <= expected * (1 + 1e-7)


@pytest.mark.parametrize("name", CASES)
def test_tobit_reaches_the_optimum_of_an_independent_method(name):
    x, y, radius, bound = case(name)
    y = y.clamp_min(0)
    fit = nuclear_max_norm(x, y, radius=radius, bound=bound, sigma=SIGMA, tolerance=1e-8)
    assert fit.converged
    assert is_certified(fit, x, radius, bound)
    assert fit.primal == pytest.approx(tobit_reference(x, y, radius, bound, SIGMA), rel=1e-6)


def test_the_references_reject_other_programs():
    """Shrinking the solution without a box, half the radius, and a likelihood that takes hidden entries for zeros."""
    x, y, radius, bound = case("both")
    optimum = squares_reference(x, y, radius, bound)
    loose = nuclear_fit_rows(x, y, radius=radius)
    outputs = x @ (loose.left @ loose.right).mT
    shrunk = outputs * (bound / outputs.abs().max())
    assert float((y - shrunk).square().sum()) / 2 > optimum * (1 + 1e-3)
    assert nuclear_max_norm(x, y, radius=radius / 2, bound=bound, tolerance=1e-8).primal > optimum * (1 + 1e-3)
    hidden = y.clamp_min(0)
    zeros = nuclear_max_norm(x, hidden, radius=radius, bound=bound, tolerance=1e-8)
    tobit = nuclear_max_norm(x, hidden, radius=radius, bound=bound, sigma=SIGMA, tolerance=1e-8)
    taken = naive_tobit(hidden.numpy(), (x @ zeros.weight.mT).numpy(), SIGMA)[0].sum()
    assert taken > tobit.primal * (1 + 1e-3)


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.3, 2.0])
def test_two_methods_find_one_optimum(sigma):
    x, y, radius, _ = case("both")
    y = y.clamp_min(0)
    fast = nuclear_tobit(x, y, radius=radius, sigma=sigma, tolerance=1e-8)
    slow = nuclear_max_norm(x, y, radius=radius, sigma=sigma, tolerance=1e-8)
    assert fast.converged
    assert slow.converged
    assert is_certified(fast, x, radius, math.inf)
    assert fast.primal == pytest.approx(slow.primal, rel=1e-7)
    exact = nuclear_fit_rows(x, y, radius=radius)
    squares = nuclear_max_norm(x, y, radius=radius, tolerance=1e-10)
    torch.testing.assert_close(squares.weight, exact.left @ exact.right, rtol=1e-4, atol=1e-5)


@given(seed=seeds, rows=st.integers(1, 12), n=st.integers(1, 6), m=st.integers(1, 6), part=st.floats(0.05, 2.0))
def test_the_dual_value_is_below_every_feasible_value(seed, rows, n, m, part):
    """Whatever Q is, and wherever the maxima are thought to be: an invalid bound would show here."""
    x, y = draw(rows, n, seed=seed), draw(rows, m, seed=seed + 1)
    for sigma in (None, 0.0, 0.3):
        task = program(x, y, part * nuclear(y), part * float(y.abs().max()), sigma)
        point = draw(task.space.basis.shape[1], m, seed=seed + 2)
        _, primal = task.feasible(point * (task.radius / nuclear(point)))
        slope = task.loss.slopes(y)
        for q in (draw(rows, m, seed=seed + 3), -slope, torch.zeros_like(y)):
            bound = task.lower_bound(q)
            rounding = 1e-9 * (abs(primal) + abs(bound))
            assert bound <= primal + rounding
            assert task.lower_bound(q, draw(rows, m, seed=seed + 4)) <= bound + rounding


@given(seed=seeds, sigma=st.sampled_from([None, 0.2]), part=st.floats(0.1, 1.5))
def test_no_gap_is_below_zero_and_stopping_early_is_told(seed, sigma, part):
    x, y = draw(10, 4, seed=seed), draw(10, 5, seed=seed + 1)
    radius, bound = part * nuclear(y), part * float(y.abs().max())
    fit = nuclear_max_norm(x, y, radius=radius, bound=bound, sigma=sigma, tolerance=0, iterations=15)
    assert fit.gap >= 0
    assert fit.dual <= fit.primal * (1 + 1e-10)
    assert not fit.converged or fit.gap == 0
    assert fit.message.startswith("not converged") != fit.converged
    assert fit.iterations <= 15


@settings(max_examples=5)
@given(seed=seeds)
def test_only_the_span_of_the_inputs_counts(seed):
    x, y = draw(12, 4, seed=seed), draw(12, 5, seed=seed + 1)
    change = torch.linalg.qr(draw(4, 4, seed=seed + 2))[0] * torch.tensor([1.0, 5.0, 0.2, 1.0])
    options = {"radius": 0.5 * nuclear(y), "bound": 0.5 * float(y.abs().max()), "sigma": 0.3}
    one, other = nuclear_max_norm(x, y, **options), nuclear_max_norm(x @ change, y, **options)
    assert other.primal == pytest.approx(one.primal, rel=2e-4)
    torch.testing.assert_close(x @ one.weight.mT, x @ change @ other.weight.mT, rtol=0.1, atol=0.1)


def test_mostly_hidden_data_converge():
    """The likelihood is flat there: a penalty that does not adapt stalls."""
    x, y, radius, bound = case("free")
    y = (y - 2 * y.std()).clamp_min(0)
    assert float((y > 0).double().mean()) < 0.1
    for fit in (
        nuclear_max_norm(x, y, radius=radius, bound=bound, sigma=0.3),
        nuclear_tobit(x, y, radius=radius, sigma=0.3),
    ):
        assert fit.converged, fit.message
        assert is_certified(fit, x, radius, math.inf)


def test_nothing_to_explain_is_explained_exactly():
    x = draw(10, 4)
    fit = nuclear_max_norm(x, torch.zeros(10, 3), radius=1.0, bound=1.0)
    assert (fit.primal, fit.rank, fit.converged) == (0.0, 0, True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": -1.0}, "radius"),
        ({"radius": math.nan}, "radius"),
        ({"bound": 0.0}, "bound"),
        ({"bound": math.nan}, "bound"),
        ({"sigma": -0.1}, "sigma"),
        ({"iterations": 0}, "iteration"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"x": torch.zeros(10, 4)}, "zero"),
        ({"x": torch.zeros(9, 4)}, "equally many rows"),
        ({"x": torch.zeros(0, 4), "y": torch.zeros(0, 3)}, "at least one"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, word):
    given_ = {"x": draw(10, 4), "y": draw(10, 3, seed=1), "radius": 1.0, "bound": 1.0, "sigma": 0.1} | options
    with pytest.raises(ValueError, match=word) as caught:
        nuclear_max_norm(**given_)
    assert "\n" not in str(caught.value)
    if "bound" not in options:
        del given_["bound"]
        with pytest.raises(ValueError, match=word):
            nuclear_tobit(**given_)


def test_data_must_be_finite():
    with pytest.raises(NonFiniteError):
        nuclear_tobit(draw(3, 2), torch.full((3, 2), math.nan), radius=1.0, sigma=1.0)


# --- the losses of entries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hazard_is_right_everywhere(dtype):
    t = torch.linspace(-8, 6, 57).to(dtype)
    with np.errstate(all="ignore"):
        naive = (
            np.exp(-(t.double().numpy() ** 2) / 2) / math.sqrt(2 * math.pi) / scipy.special.ndtr(-t.double().numpy())
        )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(hazard(t).double(), torch.from_numpy(naive), rtol=tolerance, atol=1e-14)
    far = torch.tensor([20.0, 1e3, 1e6, 1e15]).to(dtype)
    torch.testing.assert_close(hazard(far), far + 1 / far, rtol=1e-4, atol=0)
    assert hazard(torch.tensor([-1e3, -1e30]).to(dtype)).tolist() == [0.0, 0.0]


def test_the_quotient_of_density_and_tail_would_not_do():
    t = torch.tensor([15.0])
    quotient = torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) / torch.special.ndtr(-t)
    assert not torch.allclose(quotient, hazard(t))


@given(seed=seeds, sigma=st.sampled_from([0.0, 1e-3, 0.3, 3.0]), rho=st.sampled_from([1e-2, 1.0, 30.0]))
def test_maps_of_entries_are_what_they_say(seed, sigma, rho):
    y, w, q = (draw(6, 5, seed=seed + i) for i in range(3))
    for loss in (Squares(y), Tobit(y, sigma)):
        s = w.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss.values(s).sum(), s)
        torch.testing.assert_close(loss.slopes(w), slope, rtol=1e-6, atol=1e-9)
        for start in (None, q):
            nearest = loss.nearest(w, rho, start)
            torch.testing.assert_close(
                loss.slopes(nearest) + rho * (nearest - w), torch.zeros_like(w), atol=1e-7, rtol=0
            )
        grid = torch.linspace(-2, 2, 401).double().view(-1, 1, 1).expand(-1, 6, 5)
        many = type(loss)(y.expand_as(grid), *([sigma] if isinstance(loss, Tobit) else []))
        brute = (q * grid - many.values(grid)).amax(0)
        found = conjugate(loss, q, 2.0)
        assert bool((found >= brute - 1e-12).all())
        torch.testing.assert_close(found, brute, rtol=0, atol=2e-5)
        assert bool((conjugate(loss, q, 2.0, at=w) >= found - 1e-9).all())


def test_a_sigma_of_zero_is_the_limit():
    y, s = draw(6, 5), draw(6, 5, seed=1)
    torch.testing.assert_close(Tobit(y, 1e-6).values(s), Tobit(y, 0.0).values(s), atol=1e-9, rtol=1e-4)
