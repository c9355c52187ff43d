"""The optimizer of ``debora_``: one of torch's for the atoms, away-step Frank–Wolfe for their gains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankfold.adapt.debora import atomic_layers
from rankfold.adapt.layer import AtomicLayer
from rankfold.induce.places import still_there
from rankfold.linalg.brief import brief
from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.leading import leading
from rankfold.linalg.manifold.frank_wolfe import Direction, direction, moved
from rankfold.sites import Form
from rankfold.train.step.around import Around

Level = Literal["both", "lower", "upper"]
_TRIES = 30
_LOOSE = 0.95  # of the radius


@dataclass(frozen=True)
class Certificate:
    """``gap``: the loss is at most this far above its least value over Σ‖ΔW‖_* ≤ radius, where it is convex in ΔW.
    ``slopes``: the largest singular value of the gradient of each layer, what one more unit of budget would gain there.
    ``note``: whether the radius binds, in a sentence."""

    gap: float
    slopes: dict[str, float]
    note: str

    __repr__ = brief


class Debora(Around):
    """Trains what ``debora_`` has prepared, in anyone's loop: ``zero_grad``, backward, ``step``.

    Gradients of columns are projected onto their tangent space, and columns are put back to unit length (or
    orthonormal) after each step. The gains s of all layers together take one step of away-step Frank–Wolfe on {s ≥ 0,
    Σs ≤ radius} along their plain gradient, so that the budget is met at every step. With ``step(closure)`` its length
    is found by backtracking. Gains that reach zero by a step away stay there until they pay again; ``prune_`` takes
    their atoms out. ``certify(closure)`` measures the duality gap over the whole ball.

    By default both levels see the same batches. ``step(level="lower")`` moves the atoms alone, ``step(level="upper")``
    the gains alone: call these on batches of two halves of the data. The gradient in s then leaves out how the atoms
    would follow, so that it is biased; where both levels see the same data it is not.

    Args:
        model: prepared by ``debora_``.
        optimizer: a class of ``torch.optim``, which moves U, V and whatever else is to be trained.
        groups: parameter groups in place of every parameter. Gains among them have no steps of ``optimizer``: they are
            there for whoever scales or clips gradients by groups.
        averaging: of the gradients of the gains, without a closure.
        way: part of the way that a step of the gains goes, without a closure; shorter where a schedule lets the rate
            fall.
        scaled: gradients of columns are divided by their curvature, about s², for plain gradient descent; Adam needs no
            such thing.
        settings: of ``optimizer``.

    Raises:
        ValueError: a model without such layers.
        NonFiniteError: at a step, naming the layer, before anything is changed.

    Source: as ``debora_``.

    Example:
        >>> net, x = rf.debora_(nn.Sequential(nn.Linear(16, 8)), rank=2, radius=1.0), torch.randn(4, 16)
        >>> optimizer = rf.Debora(net, torch.optim.Adam, lr=1e-2)
        >>> net(x).square().mean().backward(); optimizer.step()
        >>> float(optimizer.gains.sum()) <= 1.0 + 1e-6
        True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        groups: Iterable[Any] | None = None,
        averaging: float = 0.9,
        way: float = 0.02,
        scaled: bool = False,
        **settings: Any,
    ) -> None:
        self.layers = atomic_layers(model)
        if not self.layers:
            raise ValueError("the model has no atoms to train: prepare it with rankfold.debora_ first")
        if not 0 <= averaging < 1:
            raise ValueError(f"averaging must be at least 0 and below 1, got {averaging!r}")
        if not 0 < way <= 1:
            raise ValueError(
                f"way, the share of the way to a vertex that one step takes, must be above 0 and at most 1, got {way!r}"
            )
        self.radius = next(iter(self.layers.values())).radius
        self.averaging, self.gap = averaging, float("inf")
        if groups is None:
            groups = [p for p in model.parameters() if p.requires_grad]
        super().__init__(optimizer(groups, **settings))
        self.way, self.scaled, self._peak = way, scaled, 0.0
        self.curvature: float | None = None
        self._mean: Tensor | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Also of the gains."""
        self.inner.zero_grad(set_to_none)
        for layer in self.layers.values():
            layer.gains.grad = None

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimizer, with what the steps of the gains remember: plain tensors and numbers."""
        kept = {"curvature": self.curvature, "mean": self._mean, "peak": self._peak, "gap": self.gap}
        return self.inner.state_dict() | {"gains": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the model's state first, which may have other numbers of atoms."""
        state = dict(state_dict)
        kept = state.pop("gains")
        self.curvature, self._mean, self._peak, self.gap = (kept[k] for k in ("curvature", "mean", "peak", "gap"))
        self.inner.load_state_dict(state)

    @property
    def gains(self) -> Tensor:
        """s of all layers, one after another, float64."""
        return torch.cat([layer.gains.detach().double() for layer in self.layers.values()])

    @property
    def ranks(self) -> dict[str, int]:
        """Atoms with weight, by layer."""
        return {name: int((layer.gains > 0).sum()) for name, layer in self.layers.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, level: Level = "both") -> Any:
        """One step. Returns the loss where a ``closure`` gave it (it clears gradients, computes the loss, calls
        backward and returns it)."""
        still_there(self.layers)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_finite()
        gradient = self._gradient()
        if level != "upper":
            self._tangent()
            with _set_aside(self._parts()):
                self.inner.step()
            for layer in self.layers.values():
                retract_(layer)
        if level != "lower" and gradient is not None:
            self._move(gradient, closure)
        return loss

    def _gradient(self) -> Tensor | None:
        """∂f/∂s of all layers, or None where nothing was differentiated; zero for a layer that was not reached."""
        if all(layer.gains.grad is None for layer in self.layers.values()):
            return None
        return torch.cat([torch.zeros_like(g).double() if g.grad is None else g.grad.double() for g in self._parts()])

    def _parts(self) -> list[nn.Parameter]:
        return [layer.gains for layer in self.layers.values()]

    def _set(self, s: Tensor) -> None:
        for part, value in zip(self._parts(), s.split([len(p) for p in self._parts()]), strict=True):
            part.copy_(value)

    def _move(self, gradient: Tensor, closure: Callable[[], Any] | None) -> None:
        """The gains along one direction of Frank–Wolfe."""
        s = self.gains
        if closure is None:
            old = self._mean
            known = old is not None and len(old) == len(gradient)
            mean = self.averaging * old + (1 - self.averaging) * gradient if known and old is not None else gradient
            self._mean = self._turned(s, mean)
            along = direction(s, self._mean, self.radius)
            self.gap = along.gap
            self._set(moved(s, along, self.way * self._share()))
            return
        with torch.enable_grad():
            loss = float(closure())  # after the step of the atoms
        fresh = self._gradient()
        along = direction(s, self._turned(s, gradient if fresh is None else fresh), self.radius)
        self.gap = along.gap
        self._search(s, along, loss, closure)

    def _search(self, s: Tensor, along: Direction, loss: float, closure: Callable[[], Any]) -> None:
        """The longest of ever shorter steps whose quadratic model holds (Pedregosa et al. 2020): in the loss, or, where
        that says no more than rounding, in the slope at its end."""
        size = float(along.change.square().sum())
        if along.slope <= 0 or size == 0:
            return
        curvature = along.slope / size if self.curvature is None else self.curvature / 2
        for _ in range(_TRIES):
            length = min(along.longest, along.slope / (curvature * size))
            self._set(moved(s, along, length))
            with torch.enable_grad():
                now = float(closure())
            fresh = self._gradient()
            seen = float("inf")
            if fresh is not None and length > 0:
                seen = (along.slope + float(fresh @ along.change)) / (length * size)
            if seen <= curvature or now <= loss - length * along.slope + 0.5 * length**2 * curvature * size:
                break
            curvature = max(2 * curvature, min(seen, 1e3 * curvature))
        else:
            self._set(s)
        self.curvature = curvature

    def _share(self) -> float:
        """Where a schedule lets the rate fall, the steps of the gains become shorter with it."""
        rate = max(float(group["lr"]) for group in self.param_groups)
        self._peak = max(self._peak, rate)
        return rate / self._peak if self._peak else 1.0

    def _turned(self, s: Tensor, gradient: Tensor) -> Tensor:
        """The gradient after atoms without weight that would raise the loss were turned round: only their slope
        changes with them."""
        turned = (s == 0) & (gradient > 0)
        for layer, flip in zip(self.layers.values(), turned.split([len(p) for p in self._parts()]), strict=True):
            layer.left[:, flip] *= -1
        return torch.where(turned, -gradient, gradient)

    def _tangent(self) -> None:
        """Of each column's gradient what would change its length is taken away; with ``scaled``, the rest is divided by
        its curvature along the frame, about s² + 2 s ‖g v‖ for a loss of curvature 1."""
        for layer in self.layers.values():
            by_left, by_right = layer.left.grad, layer.right.grad
            if by_left is None or by_right is None:
                continue
            steep = torch.maximum(by_left.norm(dim=0), by_right.norm(dim=1))
            by_left -= layer.left * (layer.left * by_left).sum(0)
            by_right -= layer.right * (layer.right * by_right).sum(1, keepdim=True)
            if self.scaled:
                curvature = (layer.gains.square() + 2 * steep).clamp_min(torch.finfo(steep.dtype).tiny)
                by_left /= curvature
                by_right /= curvature.unsqueeze(1)

    def prune_(self) -> None:
        """Take atoms without weight out: gains, columns, and their moments in the inner optimizer."""
        kept = [(layer.gains > 0).nonzero().squeeze(1) for layer in self.layers.values()]
        for layer, keep in zip(self.layers.values(), kept, strict=True):
            for part, dim in ((layer.left, 1), (layer.right, 0)):
                for key, value in self.inner.state.get(part, {}).items():
                    if isinstance(value, Tensor) and value.shape == part.shape:
                        self.inner.state[part][key] = value.index_select(dim, keep)
            layer.put_(layer.left[:, keep], layer.gains[keep], layer.right[keep])
        self._mean = None

    @torch.no_grad()
    def certify(self, closure: Callable[[], Any], *, renew: bool = False) -> Certificate:
        """The duality gap over Σ‖ΔW‖_* ≤ radius, from the whole gradient of every weight, at what ``closure`` sees.

        gap = radius · max σ₁(−g) + Σ ⟨g, ΔW⟩. ``renew``: then make each layer's atoms the singular triplets of its
        update, which leaves the update as it is, take out those without weight, and put the leading pair of −g into
        each layer where it pays more than what is there, with weight 0: what Frank–Wolfe may turn to. Cost: one
        forward and backward pass with dense gradients of the frozen weights, and one leading pair of each.
        """
        dense = self._dense(closure)
        slopes, inner = {}, 0.0
        pairs = {}
        for name, (layer, gradient) in dense.items():
            top = leading(-gradient, 1)
            slopes[name], pairs[name] = float(top.values[0]), (top.left[:, :1], top.right[:1])
            inner += float((gradient @ layer.right.T.to(gradient) * (layer.left * layer.gains).to(gradient)).sum())
        steepest = max(slopes, key=lambda name: slopes[name])
        gap = self.radius * max(0.0, slopes[steepest]) + inner
        used, price = float(self.gains.sum()) / self.radius, max(0.0, slopes[steepest])
        note = f"the gains add up to the whole radius: a radius larger by one would lower the loss by about {price:.3g}"
        if used < _LOOSE:
            note = f"the gains add up to {used:.0%} of the radius: if that stays so, the radius limits nothing"
        if renew:
            for name, layer in self.layers.items():
                self._renew(layer, pairs[name] if slopes[name] * self.radius > -inner else None)
            self._mean = None
        return Certificate(gap, slopes, note)

    def _dense(self, closure: Callable[[], Any]) -> dict[str, tuple[AtomicLayer, Tensor]]:
        """The gradient of each frozen weight as a matrix."""
        weights = {name: layer.kind.weight(layer.base) for name, layer in self.layers.items()}
        flags = {name: weight.requires_grad for name, weight in weights.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
            weight.grad = None
        try:
            with torch.enable_grad():
                closure()
            found = {}
            for name, layer in self.layers.items():
                gradient = weights[name].grad
                if gradient is None:
                    gradient = torch.zeros_like(weights[name])
                found[name] = (layer, layer.kind.geometry(Form.FACTORED).matrix(gradient).detach())
            return found
        finally:
            for name, weight in weights.items():
                weight.grad = None
                weight.requires_grad_(flags[name])

    def _renew(self, layer: AtomicLayer, new: tuple[Tensor, Tensor] | None) -> None:
        found = layer.spectrum()
        keep = found.values > 1e-12 * max(float(found.values.max()) if len(found.values) else 0.0, 1e-300)
        left, gains, right = found.left[:, keep], found.values[keep], found.right[keep]
        if new is not None:
            u, v = (part.double().cpu() for part in new)
            if layer.frame == "stiefel":
                u = torch.linalg.qr(torch.cat([left, u], 1))[0][:, -1:]
                v = torch.linalg.qr(torch.cat([right.T, v.T], 1))[0][:, -1:].T
            left, right = torch.cat([left, u], 1), torch.cat([right, v])
            gains = torch.cat([gains, gains.new_zeros(1)])
        layer.put_(left, gains, right)
        for part in (layer.left, layer.right):
            self.inner.state.pop(part, None)

    def _check_finite(self) -> None:
        for name, layer in self.layers.items():
            for part in (layer.left, layer.gains, layer.right):
                if part.grad is not None and not bool(part.grad.isfinite().all()):
                    raise NonFiniteError(
                        f"{name}: its gradient is not finite, so this step was not taken: lower the learning rate"
                    )


@contextmanager
def _set_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Without gradients of these, which a step of the optimizer then leaves as they are."""
    held = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


@torch.no_grad()
def retract_(layer: AtomicLayer) -> None:
    """Columns back to unit length, or to orthonormal ones, with the signs that they have."""
    if not layer.rank:
        return
    if layer.frame == "oblique":
        layer.left.div_(layer.left.norm(dim=0, keepdim=True).clamp_min(1e-30))
        layer.right.div_(layer.right.norm(dim=1, keepdim=True).clamp_min(1e-30))
        return
    for part, turned in ((layer.left, False), (layer.right, True)):
        columns = part.T if turned else part
        wide = columns.to(torch.promote_types(columns.dtype, torch.float32))
        q, r = torch.linalg.qr(wide)
        q = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
        part.copy_((q.T if turned else q).to(part))
