"""The fit behind an activation: parabolas that touch from above, descent, planted problems, and cases known in full."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.linalg import NonFiniteError, activation_aware, least_squares, project
from rankfold.linalg.programs.activation_loss import activate, activation_loss, surrogate_loss

seeds = st.integers(0, 2**31)
ACTIVATIONS = ["identity", "relu", "leaky_relu", "gelu", "silu"]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(seed=0, rows=300, n=12, m=15):
    """Inputs with a mean, pre-activations of a weight whose values decay."""
    x = draw(rows, n, seed=seed) + 0.5
    left, right = torch.linalg.qr(draw(m, n, seed=seed + 1))[0], torch.linalg.qr(draw(n, n, seed=seed + 2))[0]
    weight = 2 * left * torch.logspace(0, -1, n, dtype=torch.float64) @ right
    return x, x @ weight.mT + 0.3 * draw(m, seed=seed + 3), weight


def outputs(fit, x):
    return x.double() @ (fit.left @ fit.right).mT + fit.bias


def behind(u, target, name, weights=1.0):
    return float(((activate(u, name)[0] - activate(target.double(), name)[0]).square() * weights).sum())


# --- the parabolas


def lies_above(loss_of, target, at, curvature):
    """Whether the parabola of this curvature that touches the loss at `at` is nowhere below it."""
    u = torch.linspace(-6, 6, 601).double().unsqueeze(1).expand(-1, at.shape[-1])
    loss, at = loss_of(target.expand_as(u)), at.expand_as(u)
    value, step = loss(at)
    parabola = value - 2 * step * (u - at) + curvature * (u - at) ** 2
    return bool((parabola >= loss(u)[0] - 1e-9).all())


GRID = torch.cartesian_prod(torch.linspace(-4, 4, 21).double(), torch.linspace(-4, 4, 21).double()).mT.unsqueeze(1)


@pytest.mark.parametrize("sigma", [None, 0.0, 0.05, 1.0])
def test_relu_and_what_stands_above_it_lie_below_parabolas_of_curvature_one(sigma):
    def loss_of(target):
        return activation_loss(target, "relu") if sigma is None else surrogate_loss(target, sigma)

    assert lies_above(loss_of, *GRID, 1.0)
    assert not lies_above(loss_of, *GRID, 0.9)


def test_leaky_relu_does_not_and_smooth_activations_need_more():
    """What the page calls a heuristic: a kink for negative targets, a curvature that grows with the target."""
    target, at = GRID
    where = (target > 0).flatten()

    def leaky(target):
        return activation_loss(target, "leaky_relu", 0.1)

    assert not lies_above(leaky, target, at, 4.0)
    assert lies_above(leaky, target[:, where], at[:, where], 1.0)
    for name in ("gelu", "silu"):
        assert not lies_above(lambda target, name=name: activation_loss(target, name), target, at, 1.0)
        assert lies_above(lambda target, name=name: activation_loss(target, name), target, at, 2.5)


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.05, 1.0])
def test_the_convex_loss_lies_above_the_loss_of_relu(sigma):
    target, u = GRID
    assert bool((surrogate_loss(target, sigma)(u)[0] >= activation_loss(target, "relu")(u)[0] - 1e-12).all())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_steps_are_half_the_slope(name):
    target, u = (part + 0.013 for part in GRID)
    u = u.clone().requires_grad_()
    loss, step = activation_loss(target, name)(u)
    (slope,) = torch.autograd.grad(loss.sum(), u)
    torch.testing.assert_close(step.detach(), -slope / 2)
    functions = {"identity": lambda a: a, "leaky_relu": torch.nn.functional.leaky_relu}
    function = functions.get(name) or getattr(torch.nn.functional, name)
    torch.testing.assert_close(activate(u.detach(), name)[0], function(u.detach()))


# --- the fit


@given(
    seed=seeds,
    rank=st.integers(1, 6),
    name=st.sampled_from(ACTIVATIONS),
    sigma=st.sampled_from([None, 0.0, 1e-3, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_what_is_minimised_never_rises_and_the_best_point_is_returned(seed, rank, name, sigma, dtype):
    x, target, _ = (part.to(dtype) for part in layer(seed, 60, 7, 8))
    sigma = sigma if name == "relu" else None
    fit = activation_aware(x, target, rank, activation=name, sigma=sigma, iterations=12)
    assert all(after <= before for before, after in pairwise(fit.losses))
    assert fit.activation_losses[fit.best] == min(fit.activation_losses)
    assert behind(outputs(fit, x), target, name) == pytest.approx(
        fit.activation_losses[fit.best], rel=1e-3 if dtype == torch.float32 else 1e-9
    )
    assert (fit.left.shape, fit.right.shape, fit.bias.shape) == ((8, rank), (rank, 7), (8,))
    assert len(fit.losses) == len(fit.activation_losses) <= 13
    assert fit.message
    assert "not converged" in fit.message or fit.converged


def imputed(x, target, rank, iterations, guess=lambda a: a.clamp_max(0)):
    """A4 as it is written down: a rank-r projection of the imputed outputs, no bias, unit steps, from nothing else."""
    u = torch.linalg.svd(x, full_matrices=False)[0]

    def project(y):
        left, s, right = torch.linalg.svd(u.mT @ y, full_matrices=False)
        return u @ (left[:, :rank] * s[:rank]) @ right[:rank]

    a = project(target)
    seen, losses = target > 0, []
    for _ in range(iterations):
        losses.append(float(torch.where(seen, (target - a) ** 2, a.clamp_min(0) ** 2).sum()))
        a = project(torch.where(seen, target, guess(a)))
    return losses


def test_the_algorithm_as_written_is_not_better():
    """Same start, same number of iterations, the bias held at zero by symmetric inputs; ours may take longer steps."""
    x, target, _ = layer(3)
    x = torch.cat([x, -x])
    target = torch.cat([target - target.mean(0), target.mean(0) - target])
    plain = imputed(x, target, 4, 40)
    fit = activation_aware(x, target, 4, sigma=0.0, iterations=39, tolerance=0)
    assert fit.losses[0] <= plain[0] * (1 + 1e-9)
    assert fit.losses[-1] <= plain[-1] * (1 + 1e-6)


def test_the_oracle_of_descent_rejects_imputing_the_wrong_side():
    """Where the target is hidden, max(u, 0) in place of min(u, 0): the loss then rises."""
    x, target, _ = layer(3)
    losses = imputed(x, target, 4, 10, guess=lambda a: a.clamp_min(0))
    assert any(after > before for before, after in pairwise(losses))


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", "silu"])
def test_it_is_nearer_behind_the_activation_than_least_squares(name):
    x, target, weight = layer(5, rows=400)
    fit = activation_aware(x, target, 4, activation=name)
    centred = x - x.mean(0)
    left, right = project(weight, inputs=centred.mT @ centred).factors(4)
    plain = x @ (left @ right).mT
    plain = plain + (target - plain).mean(0)
    assert fit.activation_losses[0] == pytest.approx(behind(plain, target, name), rel=1e-9)
    assert behind(outputs(fit, x), target, name) < 0.93 * behind(plain, target, name)


def test_the_loss_itself_is_fitted_better_than_its_convex_bound():
    x, target, _ = layer(5, rows=400)
    exact = activation_aware(x, target, 4, iterations=100)
    bound = activation_aware(x, target, 4, sigma=0.0, iterations=100)
    assert min(exact.activation_losses) < min(bound.activation_losses)
    assert bound.losses[-1] < bound.losses[0]


def test_a_planted_layer_is_found_from_its_activations():
    """400 × 20 → 30, rank 4, σ = 0.3, signs of hidden targets unknown: .0031; with all pre-activations .0015."""
    truth = draw(400, 20, seed=1) @ draw(20, 4, seed=2) @ draw(4, 30, seed=3) / 20**0.5
    x, noisy = draw(400, 20, seed=1), truth + 0.3 * draw(400, 30, seed=4)
    hidden = noisy.clamp_min(0)
    known = activation_aware(x, noisy, 4, activation="identity")
    fit = activation_aware(x, hidden, 4, sigma=0.3, iterations=300, tolerance=1e-9)
    relative = (0.3**2 * 4 * (20 + 30 - 4) + 0.3**2 * 30) / (400 * 30)  # theory, with 30 free biases
    assert float((outputs(known, x) - truth).square().mean()) == pytest.approx(relative, rel=0.25)
    assert float((x @ (fit.left @ fit.right).mT + fit.bias - truth).square().mean()) < 4 * relative
    wrong = activation_aware(x, hidden, 4, activation="identity")
    assert float((outputs(wrong, x) - truth).square().mean()) > 50 * relative


def test_the_identity_is_the_closed_form():
    x, target, weight = layer(7)
    metric = draw(15, seed=8).square() + 0.1
    fit = activation_aware(x, target, 5, activation="identity", weights=metric)
    centred = x - x.mean(0)
    projection = project(weight, inputs=centred.mT @ centred, metric=metric)
    assert fit.losses[-1] == pytest.approx(float(projection.errors[5]) ** 2, rel=1e-9)
    left, right = projection.factors(5)
    torch.testing.assert_close(fit.left @ fit.right, left @ right)
    assert fit.converged


def test_an_offset_is_a_part_of_the_pre_activation():
    """Target and fit both with the other branch: the weight then fits the difference."""
    x, target, _ = layer(9)
    offset = draw(*target.shape, seed=10)
    fit = activation_aware(x, target + offset, 3, offset=offset, activation="identity")
    alone = activation_aware(x, target, 3, activation="identity")
    torch.testing.assert_close(fit.left @ fit.right, alone.left @ alone.right)
    torch.testing.assert_close(fit.bias, alone.bias)
    with_relu = activation_aware(x, target + offset, 3, offset=offset)
    assert behind(outputs(with_relu, x) + offset, target + offset, "relu") == pytest.approx(min(with_relu.losses))
    assert min(with_relu.losses) < with_relu.losses[0]


def test_weights_of_outputs_are_those_of_the_loss():
    x, target, _ = layer(11)
    weights = torch.ones(15).double()
    weights[:3] = 100.0
    fit, plain = activation_aware(x, target, 3, weights=weights), activation_aware(x, target, 3)
    assert behind(outputs(fit, x), target, "relu", weights) == pytest.approx(min(fit.losses))
    assert min(fit.losses) < behind(outputs(plain, x), target, "relu", weights)


def test_a_start_is_where_it_begins_and_what_it_may_return():
    x, target, _ = layer(13)
    first = activation_aware(x, target, 3, iterations=30, tolerance=0)
    again = activation_aware(x, target, 4, start=(first.left, first.right, first.bias), iterations=3)
    assert again.losses[0] == pytest.approx(min(first.losses))
    none = activation_aware(x, target, 3, start=(first.left, first.right, first.bias), iterations=0)
    assert none.best == 0
    torch.testing.assert_close(none.left @ none.right, first.left @ first.right)
    assert "not converged" in none.message


@pytest.mark.parametrize("sigma", [None, 0.1])
def test_a_ridge_is_rows_of_identity_added_to_the_loss(sigma):
    x, target, weight = layer(15, rows=40)
    fit = activation_aware(x, target, 3, anchor=weight, ridge=50.0, sigma=sigma, iterations=30)
    assert all(after <= before for before, after in pairwise(fit.losses))
    z = fit.left @ fit.right
    assert fit.activation_losses[fit.best] == pytest.approx(
        behind(outputs(fit, x), target, "relu") + 50 * float((z - weight).square().sum())
    )
    stiff = activation_aware(x, target, 3, anchor=weight, ridge=1e12, iterations=3)
    u, s, vh = torch.linalg.svd(weight)
    torch.testing.assert_close(stiff.left @ stiff.right, u[:, :3] * s[:3] @ vh[:3], rtol=1e-3, atol=1e-3)


@given(seed=seeds)
def test_only_the_span_of_the_inputs_counts(seed):
    x, target, _ = layer(seed, 60, 5, 6)
    change = torch.linalg.qr(draw(5, 5, seed=seed))[0] * torch.tensor([1.0, 3.0, 0.1, 10.0, 1.0])
    one = activation_aware(x, target, 2, iterations=5)
    other = activation_aware(x @ change, target, 2, iterations=5)
    assert other.losses == pytest.approx(one.losses, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dependent", "outlier", "few", "silent", "condition 1e6", "shifted"])
def test_hard_inputs_still_descend(kind, dtype):
    x = {
        "dependent": draw(80, 4, seed=1) @ draw(4, 12, seed=2),
        "outlier": draw(80, 12, seed=3) * torch.tensor([1e5] + [1.0] * 11),
        "few": draw(7, 12, seed=4),
        "silent": draw(80, 12, seed=5) * torch.tensor([0.0] + [1.0] * 11),
        "condition 1e6": torch.linalg.qr(draw(80, 12, seed=6))[0]
        * torch.logspace(0, -6, 12)
        @ torch.linalg.qr(draw(12, 12, seed=7))[0],
        "shifted": draw(80, 12, seed=8) + 1e3,
    }[kind]
    target = x @ draw(12, 9, seed=8)
    target = target / target.std() + 0.1 * draw(*target.shape, seed=9)
    fit = activation_aware(x.to(dtype), target.to(dtype), 3, iterations=20)
    exact = activation_aware(x.to(dtype).double(), target.to(dtype).double(), 3, iterations=20)
    assert all(torch.isfinite(part).all() for part in (fit.left, fit.right, fit.bias))
    assert fit.losses[-1] <= fit.losses[0]
    assert min(fit.losses) <= 1.01 * min(exact.losses) + 1e-3 * exact.losses[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_bias_that_is_not_free_stays_as_it_is(name):
    x, target, _ = layer(18)
    for start in (None, (draw(15, 4, seed=1), draw(4, 12, seed=2), draw(15, seed=3))):
        fit = activation_aware(x, target, 4, activation=name, start=start, free=False, iterations=20)
        assert torch.equal(fit.bias, torch.zeros(15).double() if start is None else start[2])
        assert fit.losses[-1] < 0.999 * fit.losses[0] or (name, start) == ("identity", None)
        assert fit.activation_losses[fit.best] == pytest.approx(behind(outputs(fit, x), target, name))


def test_without_a_free_bias_the_identity_is_the_projection_about_zero():
    x, target, _ = layer(19)
    fit = activation_aware(x, target, 4, activation="identity", free=False)
    left, right = project(torch.linalg.lstsq(x, target).solution.mT, inputs=x.mT @ x).factors(4)
    torch.testing.assert_close(fit.left @ fit.right, left @ right)


def test_few_rows_and_an_anchor_leave_the_rest_to_the_anchor():
    x, target, weight = layer(17, rows=5)
    gram = (x - x.mean(0)).mT @ (x - x.mean(0))
    fit = activation_aware(x, target, 12, anchor=weight, activation="identity")
    torch.testing.assert_close(fit.left @ fit.right, weight, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(least_squares(gram, gram @ weight.mT), weight, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rank": 0}, "rank must be from 1 to 7 .* got 0"),
        ({"rank": 9}, "rank must be from 1 to 7 .* got 9"),
        ({"activation": "tanh"}, "tanh"),
        ({"activation": "gelu", "sigma": 0.1}, "gelu"),
        ({"sigma": -1.0}, "sigma"),
        ({"offset": torch.zeros(3, 8)}, "offset"),
        ({"weights": torch.zeros(8)}, "positive"),
        ({"weights": torch.ones(7)}, "positive"),
        ({"anchor": torch.ones(7, 8)}, "anchor"),
        ({"ridge": float("inf")}, "ridge"),
        ({"iterations": -1}, "iterations"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"start": (torch.ones(8, 3), torch.ones(3, 7), torch.ones(8))}, "start"),
        ({"start": (torch.ones(8, 1), torch.ones(1, 6), torch.ones(8))}, "start"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, word):
    x, target, _ = layer(0, 20, 7, 8)
    with pytest.raises(ValueError, match=word) as caught:
        activation_aware(x, target, **({"rank": 2} | options))
    assert "\n" not in str(caught.value)


def test_rows_must_match_and_be_finite():
    x, target, _ = layer(0, 20, 7, 8)
    for rows in (x[:19], x[:0], x[0]):
        with pytest.raises(ValueError, match="equally many rows"):
            activation_aware(rows, target[: 0 if not len(rows) else 20], 2)
    with pytest.raises(NonFiniteError):
        activation_aware(x, target.clone().fill_(float("nan")), 2)
