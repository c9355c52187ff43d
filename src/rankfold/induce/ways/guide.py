"""What all ways to low rank share: layers put in place, an optimizer around one of torch's, and when a way may act."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from rankfold.induce.places import (
    Make,
    averaged_,
    check_prepared,
    in_training,
    numbers_within,
    put_,
    same_everywhere_,
    still_there,
    warn_of_dense,
)
from rankfold.layers import Approached, InTraining, Phased
from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.manifold.tangent import wide
from rankfold.sites import Site
from rankfold.sites.wish import Where
from rankfold.train.step.around import Around, identity, listed

Model = TypeVar("Model", bound=nn.Module)
Layer = Phased | Approached


@dataclass(frozen=True)
class Way:
    """A way to a network of low rank, by what it does before training, to gradients, and between periods.

    ``way.prepare_(model)`` before the optimizer; then ``rankfold.fit(…, optimizer=way.optimizer)``, or in a loop of
    your own ``optimizer = way.optimizer(model, torch.optim.Adam, lr=…)`` and ``optimizer.settle()`` at the end of each
    epoch; ``rankfold.fold_(model, keep=True)`` at the end. ``budget``: a share of the dense network's parameters,
    within which the folded network then is. ``every``: so many steps are a period; without it an epoch is.
    """

    budget: float | None = None
    every: int | None = None

    name: ClassVar[str] = ""
    kind: ClassVar[type[Phased] | type[Approached]] = Phased
    owns_decay: ClassVar[bool] = False  # the optimizer's weight decay leaves the layers alone: the way has its own

    def __post_init__(self) -> None:
        require(self.budget is None or 0 < self.budget <= 1, self, "budget", "a share above 0 and at most 1")
        require(self.every is None or whole(self.every, 1), self, "every", "None or a whole number of at least 1")

    def prepare_(self, model: Model, where: Where | None = None) -> Model:
        """Put layers in place; in place, returns ``model``. ``where``, what is left out and errors as of
        ``rankfold.dlrt_``; ``ValueError`` also for a budget that cannot be met."""

        def make(site: Site, matrix: Tensor) -> Make:
            return lambda ordinary, matrix, turned: self.kind(ordinary, matrix, stored_transposed=turned)

        put_(model, where, self.caller, make)
        for layer in own(model).values():
            self.begin_(layer)
        if self.budget is not None:
            numbers_within(model, self.budget)
            warn_of_dense(model, self.budget)
        self.start_(model)
        return model

    def optimizer(
        self,
        model: nn.Module,
        kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        groups: Iterable[Any] | None = None,
        **settings: Any,
    ) -> Guided:
        """One of torch's optimizers with ``settings``, guided by this way; for a ``model`` that it has prepared."""
        return Guided(self, model, kind, groups, settings)

    @property
    def caller(self) -> str:
        return f"{type(self).__name__}.prepare_"

    # what a way does

    def begin_(self, layer: Any) -> None:
        """To a layer that was just put in place."""

    def start_(self, model: nn.Module) -> None:
        """To all of them together, before training."""

    def penalise(self, layer: Any, guided: Guided) -> None:
        """Add to the gradients of a layer, before a step."""

    def between(self, guided: Guided) -> None:
        """Before the first and after each step."""

    def period(self, guided: Guided) -> None:
        """At the end of a period, of which ``guided.periods`` have ended, this one included."""

    def met(self, guided: Guided) -> bool:
        """Whether the layers are what the way leads to."""
        return all(not (isinstance(layer, Phased) and layer.dense) for layer in guided.layers.values())


class Guided(Around):
    """An optimizer around one of torch's, in whose steps and periods a ``Way`` takes part.

    ``layers`` by name; ``room``: what they may take within the budget, None without one; ``notes``: what the way
    remembers, tensors by name. Between processes gradients of the layers are averaged here. Raises ``ValueError`` for a
    model that was not prepared, ``NonFiniteError`` with the name of the layer before a step that would spoil it.
    """

    def __init__(
        self,
        way: Way,
        model: nn.Module,
        kind: Callable[..., torch.optim.Optimizer],
        groups: Iterable[Any] | None,
        settings: dict[str, Any],
    ) -> None:
        check_prepared(in_training(model), way.caller)
        self.way, self.layers = way, own(model)
        if not self.layers:
            raise ValueError(
                f"the model has no layers to guide: prepare it with {type(way).__name__}(…).prepare_ first"
            )
        self.room = None if way.budget is None else numbers_within(model, way.budget)
        self.steps = self.periods = 0
        self.notes: dict[str, Tensor] = {}
        if groups is None:
            groups = [p for p in model.parameters() if p.requires_grad]
        found = listed(groups)
        super().__init__(kind(_apart(found, self._own()) if way.owns_decay else found, **settings))
        self._known = self._own()
        same_everywhere_(self.layers.values())
        way.between(self)

    def _own(self) -> dict[tuple[str, str], nn.Parameter]:
        return {
            (name, entry): parameter
            for name, layer in self.layers.items()
            for entry, parameter in layer.named_parameters(recurse=False)
            if entry != "bias"
        }

    @property
    def met(self) -> bool:
        """Whether the layers are what the way leads to, and within its budget."""
        within = self.room is None or sum(layer.numbers for layer in self.layers.values()) <= self.room
        return within and self.way.met(self)

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimizer, with counts and notes: plain tensors and numbers."""
        return self.inner.state_dict() | {"steps": self.steps, "periods": self.periods, "notes": dict(self.notes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the model's state first, so that layers are in the phase and of the ranks that were saved."""
        state = dict(state_dict)
        self.steps, self.periods = int(state.pop("steps")), int(state.pop("periods"))
        self.notes = {str(name): torch.as_tensor(value).clone() for name, value in state.pop("notes").items()}
        self.follow()
        self.inner.load_state_dict(state)
        self.way.between(self)

    def follow(self, kept: dict[str, Tensor] | None = None) -> None:
        """Take up the parameters that have come in the place of those known here. Moments are left behind; of layers
        in ``kept`` those of these directions go along."""
        begun = []
        for key, new in self._own().items():
            old = self._known[key]
            if new is old:
                continue
            self.replace((old,), (new,))
            state, chosen = self.inner.state.pop(old, {}), (kept or {}).get(key[0])
            if chosen is not None and state:
                axis = 1 if key[1] == "left" else 0
                self.inner.state[new] = {
                    k: v.index_select(axis, chosen) if self._along(v, old, axis) else v for k, v in state.items()
                }
            else:
                begun.append(new)
        self.begin(begun)
        self._known = self._own()

    @staticmethod
    def _along(moment: Any, old: Tensor, axis: int) -> bool:
        """Whether a moment has an entry for each direction: one like the parameter, or a mean over its other axis."""
        return isinstance(moment, Tensor) and moment.dim() == old.dim() and moment.shape[axis] == old.shape[axis]

    def _average(self) -> None:
        averaged_(p.grad for p in self._known.values() if p.grad is not None)

    def clip_grad_norm_(self, most: float) -> Tensor:
        """Scale all gradients so that their norm is at most ``most``, the same in all processes; returns it before."""
        self._average()
        every = [p for group in self.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(every, most)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Returns the loss where a ``closure`` gave it."""
        still_there(self.layers)
        self.follow()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._average()
        for (name, _), parameter in self._known.items():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise NonFiniteError(
                    f"{name}: its gradient is not finite, so this step was not taken and the weights are as "
                    "before: lower the learning rate, or clip gradients"
                )
        for layer in self.layers.values():
            self.way.penalise(layer, self)
        self.inner.step()
        self.steps += 1
        if self.way.every is not None and self.steps % self.way.every == 0:
            self._period()
        self.way.between(self)
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """The end of an epoch: of a period too, unless periods are counted in steps."""
        self.follow()
        if self.way.every is None:
            self._period()
            self.way.between(self)

    def _period(self) -> None:
        self.periods += 1
        self.way.period(self)
        self.follow()


def own(model: nn.Module) -> dict[str, Any]:
    """The layers that a way has put in place, by name."""
    return {name: layer for name, layer in in_training(model).items() if isinstance(layer, Layer)}


def add(parameter: Tensor, gradient: Tensor) -> None:
    """Add to a parameter's gradient, where it has one: elsewhere it took no part in this step."""
    if parameter.grad is not None:
        parameter.grad.add_(gradient.to(parameter.grad))


def factor_(layer: Phased, rank: int) -> None:
    """The best factors of this rank, balanced: √S on either side."""
    left, values, right = torch.linalg.svd(wide(layer.matrix().detach()), full_matrices=False)
    roots = values[:rank].sqrt()
    layer.factor_(left[:, :rank] * roots, roots.unsqueeze(1) * right[:rank])


def alike(layers: Iterable[InTraining], room: int) -> list[int]:
    """The ranks of one share of every layer's full rank, the largest that fits into ``room``; at least 1 each."""
    known = list(layers)
    shares = sorted({rank / min(layer.shape) for layer in known for rank in range(1, min(layer.shape) + 1)})
    found = [1] * len(known)
    for share in shares:
        ranks = [max(1, int(share * min(layer.shape) + 1e-9)) for layer in known]
        if sum(rank * sum(layer.shape) for rank, layer in zip(ranks, known, strict=True)) > room:
            break
        found = ranks
    return found


def _apart(groups: list[dict[str, Any]], layers: dict[tuple[str, str], nn.Parameter]) -> list[dict[str, Any]]:
    """The groups with parameters of the layers in groups of their own, without weight decay."""
    theirs, found = {id(p) for p in layers.values()}, []
    for group in groups:
        inside = [p for p in group["params"] if identity(p) in theirs]
        outside = [p for p in group["params"] if identity(p) not in theirs]
        found += [group | {"params": outside}] if outside else []
        found += [group | {"params": inside, "weight_decay": 0.0}] if inside else []
    return found


def whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def positive(value: float, zero: bool = False) -> bool:
    return isfinite(value) and (value > 0 or (zero and value == 0))


def require(holds: bool, way: Any, name: str, wanted: str) -> None:
    """``ValueError`` for a setting that is not what it must be."""
    if not holds:
        raise ValueError(f"{type(way).__name__}: {name} must be {wanted}, got {getattr(way, name)!r}")
