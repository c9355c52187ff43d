"""How far weights can be from rank K: the chain of theorem 3.4, testable at any parameters, and a bound of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, in_eval_mode
from rankfold.collapse.backward import whole_pass
from rankfold.collapse.centroid import INPUT, NotAChainError, Tail, centroid_gradients
from rankfold.collapse.centroid import without_grad_mode as thawed
from rankfold.collapse.curvature import Promise, bends
from rankfold.collapse.features import order_of_calls
from rankfold.collapse.losses import Loss
from rankfold.collapse.partition import Partition
from rankfold.linalg import singular_values
from rankfold.sites import Form, SiteList, opened, sites, unwrap


@dataclass(frozen=True)
class LayerBound:
    """One layer j against its distance to rank K = ``clusters``, Frobenius norms.

    ``distance`` = dist(W_j, M_K) ≤ ``joint`` = min_l ‖W_j + ∇L_C^l/κ‖ ≤ ``bound`` = min_l ‖∇L − ∇L_C^l‖/κ + ‖∇L_λ‖/κ,
    the minimum at the cut ``cut`` ("": the input). ``gradient_part`` and ``residual_part`` are the two terms of
    ``bound``; ``excess`` = dist(∇L_C^l, M_K)/κ is added to both bounds: 0 up to rounding for dense layers, while a
    centroid of maps or sequences has many patches or tokens.
    ``local`` = ‖W_j + G_K/κ‖ with G_K = Σ_k N_k δ̄_k ā_kᵀ of the layer's own rows (see ``local_gradients``), and
    ``local_part`` = ‖∇L − G_K‖/κ; None where they cannot be taken apart. ``promise``: theorem 3.4 with its constant,
    where that was asked for. Vacuous: not below ‖W_j‖.
    """

    name: str
    clusters: int
    norm: float
    distance: float
    joint: float
    bound: float
    gradient_part: float
    residual_part: float
    excess: float
    cut: str
    local: float | None
    local_part: float | None
    promise: Promise | None = None

    @property
    def certain_from(self) -> float:
        """The least decay κ at which a stationary point with these gradients and this norm is certain to be within 5 %.

        dist(W, M_K)/‖W‖ ≤ g/(κ‖W‖) with g the smaller of ‖∇L − ∇L_C‖ and ‖∇L − G_K‖. Another decay leads to other
        features, so that it is a guide and no promise. In units of the κ of this measurement: multiply by it.
        """
        least = min(self.gradient_part + self.excess, *(v for v in (self.local_part,) if v is not None), float("inf"))
        return least / (0.05 * self.norm) if self.norm > 0 else 0.0

    @property
    def vacuous(self) -> bool:
        return self.bound >= self.norm

    @property
    def holds(self) -> bool:
        """Whether the chain is true here; a False is a fault of the arithmetic, or of this program."""
        slack = 1e-9 * self.norm
        own = self.local is None or self.distance <= self.local + slack
        own = own and (self.promise is None or self.promise.holds)
        return self.distance <= self.joint + slack and self.joint <= self.bound + slack and own

    @property
    def tightness(self) -> float:
        """bound / distance, at least 1; infinite at rank K exactly."""
        return self.bound / self.distance if self.distance > 0 else float("inf")

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "clusters": self.clusters,
            "norm": self.norm,
            "distance": self.distance,
            "joint": self.joint,
            "bound": self.bound,
            "gradient_part": self.gradient_part,
            "residual_part": self.residual_part,
            "excess": self.excess,
            "cut": self.cut,
            "local": self.local,
            "local_part": self.local_part,
            "theorem": None if self.promise is None else vars(self.promise),
            "vacuous": self.vacuous,
            "holds": self.holds,
            "tightness": self.tightness if self.distance > 0 else None,
        }


@dataclass(frozen=True, eq=False)
class Chain:
    """The bound of every layer, the cuts that were not possible, with the reason, and what the data gave on the way."""

    layers: tuple[LayerBound, ...]
    skipped: Mapping[str, str]
    features: Mapping[str, Tensor] = field(repr=False)  # what entered each layer, (N, …)
    answers: Tensor = field(repr=False)  # the outputs, (N, …)

    @property
    def violations(self) -> int:
        return sum(not layer.holds for layer in self.layers)


def chain(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    partition: Partition,
    decay: float,
    loss: Loss,
    *,
    batch_size: int = 1024,
    local: bool = True,
    constants: bool = False,
) -> Chain:
    """The testable chain of theorem 3.4 for every site of ``model`` in eval mode, on ``inputs`` (N, …) in memory.

    ``targets`` (N, C) vectors; ``decay`` κ > 0 with ∇(penalty) = κ W: torch's coupled ``weight_decay``, or 2λ of
    λ‖Θ‖². (Decoupled decay, AdamW, has no penalty: the inequalities hold, and the residual does not vanish.) The cuts
    are the input and the entry of every site; where a residual connection passes a layer by there is no cut, and the
    reason is told. The chain holds for the data given, whatever part of the training set they are: what is missing is
    in the residual. ``constants``: the constant of the theorem and C·WCSS/κ beside it (``curvature``), which needs a
    model and data in float64. Gradients as found. Cost: one forward and one backward pass over the data, one
    decomposition of each weight, and a few passes over K centroids for each cut; with ``constants`` fifteen backward
    passes over the data for each cut. Raises ``ValueError`` for κ ≤ 0, sizes that do not
    fit, and ``constants`` in another precision.
    """
    if constants and targets.dtype != torch.float64:
        raise ValueError(
            f"the constant is a second difference, which needs float64, and the targets are {targets.dtype}: convert "
            "them and the model (.double())"
        )
    if not decay > 0:
        raise ValueError(f"the bounds hold only with weight decay: decay must be above 0, got {decay}")
    if not len(inputs) == len(targets) == len(partition.index):
        raise ValueError(
            f"{len(inputs)} inputs, {len(targets)} targets and {len(partition.index)} samples in the partition were "
            "given: give as many of each"
        )
    root = unwrap(model)
    with in_eval_mode(root), thawed(root), opened(root):
        asked = _Asked(targets, partition, decay, loss, batch_size, local, constants)
        return _chain(root, sites(root), inputs, asked)


@dataclass(frozen=True, eq=False)
class _Asked:
    targets: Tensor
    partition: Partition
    decay: float
    loss: Loss
    batch_size: int
    local: bool
    constants: bool


def _chain(root: nn.Module, found: SiteList, inputs: Tensor, asked: _Asked) -> Chain:
    targets, partition, loss, decay = asked.targets, asked.partition, asked.loss, asked.decay
    names = order_of_calls(root, [site.name for site in found], lambda: forward(root, inputs[:2]))
    weights: list[Any] = [root.get_submodule(name).weight for name in names]
    to_matrix = [found[name].layer.geometry(Form.FACTORED).matrix for name in names]
    seen = whole_pass(
        root, names, inputs, targets, partition, loss, weights, batch_size=asked.batch_size, local=asked.local
    )
    skipped: dict[str, str] = {}
    layers = {
        name: _Layer(name, own, whole, seen.local.get(name), decay, partition.clusters)
        for name, own, whole in zip(
            names, _matrices(weights, to_matrix), _matrices(seen.gradients, to_matrix), strict=True
        )
        if own is not None and whole is not None
    }
    for cut in (INPUT, *names[1:]) if inputs.is_floating_point() else names[1:]:
        try:
            tail = Tail(root, cut, inputs[:2])
            features = inputs if cut == INPUT else seen.features.get(cut)
            if features is None:
                raise ValueError(f"{cut} must be called exactly once, with one entry for each sample")
            if not features.is_floating_point():
                raise ValueError(f"{cut} reads whole numbers, which have no mean")
            small = centroid_gradients(tail, features, targets, partition, loss, weights)
        except ValueError as error:
            skipped[cut or "input"] = str(error) if isinstance(error, NotAChainError) else f"no cut: {error}"
            continue
        behind = [name for name, part in zip(names, small, strict=True) if part is not None]
        wcss, bend = bends(tail, features, targets, partition, loss, behind) if asked.constants else (0.0, {})
        for name, part in zip(names, _matrices(small, to_matrix), strict=True):
            if part is not None and name in layers:
                # one row for each centroid: the gradient has rank K, and only rounding is beyond it
                alone = name in seen.features and seen.features[name].ndim == 2
                rounding = 8 * torch.finfo(targets.dtype).eps * float(part.norm())
                layers[name].consider(part, cut, rounding if alone else _tail(part, partition.clusters))
                if name in bend:
                    layers[name].promised(part, cut, bend[name], wcss)
    bounds = [layer.bound() for layer in layers.values() if layer.cuts]
    return Chain(tuple(bounds), skipped, seen.features, seen.answers)


def _matrices(values: Sequence[Tensor | None], to_matrix: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor | None]:
    return [
        None if value is None else convert(value.detach().double())
        for value, convert in zip(values, to_matrix, strict=True)
    ]


@dataclass
class _Layer:
    """W, ∇L and G_K of one layer, and of every cut (‖W + ∇L_C/κ‖ + excess, ‖∇L − ∇L_C‖/κ, excess, cut)."""

    name: str
    own: Tensor
    whole: Tensor
    near: Tensor | None
    decay: float
    clusters: int
    cuts: list[tuple[float, float, float, str]] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)

    def consider(self, part: Tensor, cut: str, beyond: float) -> None:
        excess = beyond / self.decay
        joint = float((self.own + part / self.decay).norm()) + excess
        self.cuts.append((joint, float((self.whole - part).norm()) / self.decay, excess, cut))

    def promised(self, part: Tensor, cut: str, constant: float, variation: float) -> None:
        apart = float((self.whole - part).norm()) / self.decay
        self.promises.append(Promise(constant, variation, cut, apart, constant * variation / self.decay))

    def bound(self) -> LayerBound:
        _, split, excess, cut = min(self.cuts, key=lambda found: found[1] + found[2])
        residual = float((self.own + self.whole / self.decay).norm())
        local = local_part = None
        if self.near is not None and self.own.ndim == 2:
            local = float((self.own + self.near / self.decay).norm())
            local_part = float((self.whole - self.near).norm()) / self.decay
        return LayerBound(
            name=self.name,
            clusters=self.clusters,
            norm=float(self.own.norm()),
            distance=_tail(self.own, self.clusters),
            joint=min(joint for joint, *_ in self.cuts),
            bound=split + residual + excess,
            gradient_part=split,
            residual_part=residual,
            excess=excess,
            cut=cut,
            local=local,
            local_part=local_part,
            promise=min(self.promises, key=lambda promise: promise.value, default=None),
        )


def _tail(matrix: Tensor, rank: int) -> float:
    """dist(A, M_rank): the root of the sum of the squared singular values behind ``rank``; of groups together."""
    return float(singular_values(matrix)[..., rank:].square().sum().sqrt())
