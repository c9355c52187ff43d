"""Small chains of layers trained to stationarity on all of their data at once, with decay on every parameter."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from rankfold.collapse import squared_error
from rankfold.collapse.losses import Loss

_HISTORY = 20


def chain_network(widths: tuple[int, ...], activation: str, *, bias: bool, seed: int) -> nn.Sequential:
    """Linear layers of these widths, ``activation`` ("tanh", "identity") between them, weights N(0, 1/inputs), float64.

    A function of its arguments alone; biases begin at 0.
    """
    kinds: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "identity": nn.Identity}
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layer = nn.Linear(n, m, bias=bias, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5)
            if bias:
                layer.bias.zero_()
        layers += [layer, kinds[activation]()]
    return nn.Sequential(*layers[:-1])


def minimise(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    decay: float,
    *,
    weights: Tensor | None = None,
    iterations: int = 3000,
    gradient: float = 1e-6,
    loss: Loss = squared_error,
    record: Callable[[int, float], None] | None = None,
    every: int = 500,
) -> tuple[float, int]:
    """L-BFGS with strong Wolfe steps on Σ_i w_i ℓ(f(x_i), y_i) + ``decay``·‖Θ‖², w = 1/N by default.

    Stops where the norm of the gradient is at most ``gradient``, or nothing moves. ``record(iterations, norm)`` at the
    start, every ``every`` iterations, and at the end. Returns (norm of the gradient, iterations).
    """
    parameters = list(model.parameters())
    shares = torch.full((len(inputs),), 1 / len(inputs), dtype=torch.float64) if weights is None else weights
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=every,
        max_eval=2 * every,
        tolerance_grad=0.1 * gradient / sum(p.numel() for p in parameters) ** 0.5,
        tolerance_change=1e-15,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (shares * loss(model(inputs), targets)).sum()
        value = value + decay * sum(p.square().sum() for p in parameters)
        value.backward()
        return value

    closure()
    norm, done = _norm(parameters), 0
    if record is not None:
        record(done, norm)
    while done < iterations and norm > gradient:
        before, block = done, min(every, iterations - done)
        optimizer.param_groups[0]["max_iter"] = block
        optimizer.step(closure)
        done = int(optimizer.state[parameters[0]]["n_iter"])
        closure()
        norm = _norm(parameters)
        if record is not None:
            record(done, norm)
        if done - before < block // 2 and norm > gradient:
            break  # no step goes down any more: rounding
    return norm, done


def _norm(parameters: list[nn.Parameter]) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())
