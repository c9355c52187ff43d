"""How far weights can be from rank K: the chain of theorem 3.4, testable at any parameters, and a bound of our own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, logits_of
from rankfold.collapse.centroid import INPUT, NotAChainError, Tail, centroid_gradients, centroids, gradients
from rankfold.collapse.centroid import without_grad_mode as thawed
from rankfold.collapse.features import order_of_calls, patches, watched
from rankfold.collapse.losses import Loss
from rankfold.collapse.partition import Partition
from rankfold.linalg import singular_values
from rankfold.sites import Form, SiteList, sites, split_attention, unwrap


@dataclass(frozen=True)
class LayerBound:
    """One layer j against its distance to rank K = ``clusters``, Frobenius norms.

    ``distance`` = dist(W_j, M_K) ≤ ``joint`` = min_l ‖W_j + ∇L_C^l/κ‖ ≤ ``bound`` = min_l ‖∇L − ∇L_C^l‖/κ + ‖∇L_λ‖/κ,
    the minimum at the cut ``cut`` ("": the input). ``gradient_part`` and ``residual_part`` are the two terms of
    ``bound``; ``excess`` = dist(∇L_C^l, M_K)/κ is added to both bounds: 0 up to rounding for dense layers, while a
    centroid of maps or sequences has many patches or tokens.
    ``local`` = ‖W_j + G_K/κ‖ with G_K = Σ_k N_k δ̄_k ā_kᵀ of the layer's own rows (see ``local_gradients``), and
    ``local_part`` = ‖∇L − G_K‖/κ; None where they cannot be taken apart. Vacuous: not below ‖W_j‖.
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
            "vacuous": self.vacuous,
            "holds": self.holds,
            "tightness": self.tightness if self.distance > 0 else None,
        }


@dataclass(frozen=True)
class Chain:
    """The bound of every layer, and the cuts that were not possible, with the reason."""

    layers: tuple[LayerBound, ...]
    skipped: Mapping[str, str]

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
) -> Chain:
    """The testable chain of theorem 3.4 for every site of ``model`` in eval mode, on ``inputs`` (N, …) in memory.

    ``targets`` (N, C) vectors; ``decay`` κ > 0 with ∇(penalty) = κ W: torch's coupled ``weight_decay``, or 2λ of
    λ‖Θ‖². (Decoupled decay, AdamW, has no penalty: the inequalities hold, and the residual does not vanish.) The cuts
    are the input and the entry of every site; where a residual connection passes a layer by there is no cut, and the
    reason is told. The chain holds for the data given, whatever part of the training set they are: what is missing is
    in the residual. Gradients as found. Cost: one backward pass over the data (two with ``local``), and two forward and
    one backward pass over K centroids for each cut. Raises ``ValueError`` for κ ≤ 0 and sizes that do not fit.
    """
    if not decay > 0:
        raise ValueError(
            f"without weight decay stationary points are not bound to gradients: decay must be > 0, got {decay}"
        )
    if not len(inputs) == len(targets) == len(partition.index):
        raise ValueError(f"{len(inputs)} inputs, {len(targets)} targets and a partition of {len(partition.index)}")
    root = unwrap(model)
    mode = root.training
    root.eval()
    try:
        with thawed(root), split_attention(root):
            return _chain(root, sites(root), inputs, targets, partition, decay, loss, batch_size, local)
    finally:
        root.train(mode)


def _chain(
    root: nn.Module,
    found: SiteList,
    inputs: Tensor,
    targets: Tensor,
    partition: Partition,
    decay: float,
    loss: Loss,
    batch_size: int,
    local: bool,
) -> Chain:
    names = order_of_calls(root, [site.name for site in found], lambda: forward(root, inputs[:2]))
    weights: list[Any] = [root.get_submodule(name).weight for name in names]
    to_matrix = [found[name].layer.geometry(Form.FACTORED).matrix for name in names]
    skipped: dict[str, str] = {}

    def matrices(values: list[Tensor | None]) -> list[Tensor | None]:
        return [
            None if value is None else convert(value.detach().double())
            for value, convert in zip(values, to_matrix, strict=True)
        ]

    own = matrices([weight.detach() for weight in weights])
    full = matrices(gradients(Tail(root, INPUT, inputs[:2]), inputs, targets, loss, weights, batch_size=batch_size))
    best: dict[str, tuple[Any, ...]] = {}
    entered = _entered(root, names, inputs, batch_size)
    # one row for each centroid: the gradient has rank K, and only rounding is beyond it
    alone = {name for name in names if name in entered and entered[name].ndim == 2}
    cuts = (INPUT, *names[1:]) if inputs.is_floating_point() else names[1:]
    for cut in cuts:
        try:
            tail = Tail(root, cut, inputs[:2])
            features = inputs if cut == INPUT else entered.get(cut, inputs[:0])
            if len(features) != len(inputs):
                raise ValueError(f"{cut} is not called once for a batch with one entry for each sample")
            if not features.is_floating_point():
                raise ValueError(f"{cut}: whole numbers have no mean")
            small = matrices(centroid_gradients(tail, features, targets, partition, loss, weights))
        except ValueError as error:
            skipped[cut or "input"] = str(error) if isinstance(error, NotAChainError) else f"no cut: {error}"
            continue
        for name, matrix, whole, part in zip(names, own, full, small, strict=True):
            if matrix is None or whole is None or part is None:
                continue
            rounding = 8 * torch.finfo(inputs.dtype).eps * float(part.norm()) if inputs.is_floating_point() else 0.0
            excess = (rounding if name in alone else _tail(part, partition.clusters)) / decay
            joint = float((matrix + part / decay).norm()) + excess
            split = float((whole - part).norm()) / decay
            least, *before = best.get(name, (joint, split, excess, cut))
            kept = before if name in best and before[0] + before[1] <= split + excess else (split, excess, cut)
            best[name] = (min(joint, least), *kept)
    near = local_gradients(root, names, inputs, targets, partition, loss, batch_size) if local else {}
    rows = []
    for name, matrix, whole in zip(names, own, full, strict=True):
        if name not in best or matrix is None or whole is None:
            continue
        joint, split, excess, cut = best[name]
        residual = float((matrix + whole / decay).norm())
        own_bound = own_part = None
        if name in near and matrix.ndim == 2:
            own_bound = float((matrix + near[name] / decay).norm())
            own_part = float((whole - near[name]).norm()) / decay
        rows.append(
            LayerBound(
                name=name,
                clusters=partition.clusters,
                norm=float(matrix.norm()),
                distance=_tail(matrix, partition.clusters),
                joint=joint,
                bound=split + residual + excess,
                gradient_part=split,
                residual_part=residual,
                excess=excess,
                cut=cut,
                local=own_bound,
                local_part=own_part,
            )
        )
    return Chain(tuple(rows), skipped)


def _entered(root: nn.Module, names: tuple[str, ...], inputs: Tensor, batch_size: int) -> dict[str, Tensor]:
    """What enters every layer that is called once for a batch, for all of the inputs."""
    found: dict[str, list[Tensor]] = {}
    with (
        torch.no_grad(),
        watched(root, names, "input", lambda name, _, value: found.setdefault(name, []).append(value)),
    ):
        for part in inputs.split(batch_size):
            forward(root, part)
    return {name: torch.cat(parts) for name, parts in found.items() if len({part.shape[1:] for part in parts}) == 1}


def _tail(matrix: Tensor, rank: int) -> float:
    """dist(A, M_rank): the root of the sum of the squared singular values behind ``rank``; of groups together."""
    return float(singular_values(matrix)[..., rank:].square().sum().sqrt())


def local_gradients(
    model: nn.Module,
    names: tuple[str, ...],
    inputs: Tensor,
    targets: Tensor,
    partition: Partition,
    loss: Loss,
    batch_size: int = 1024,
) -> dict[str, Tensor]:
    """G_K of every layer whose rows can be taken apart: the gradient with rows replaced by their cluster means.

    ∇_W L = Σ_r δ_r a_rᵀ over the rows r that meet the matrix (samples, patches of a convolution, tokens), δ_r the
    gradient at its output. With the rows of a sample in the sample's cluster, G_K = Σ_k N_k δ̄_k ā_kᵀ has rank ≤ K, and
    ‖∇_W L − G_K‖ = ‖Σ_k Σ_{r∈C_k} (δ_r − δ̄_k)(a_r − ā_k)ᵀ‖ ≤ √S_δ √S_a with the within-cluster sums of squares of both.
    No second derivative is needed, no chain of layers, and it holds for convolution and attention as it stands.
    """
    sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    scale = 1 / len(inputs)
    for start in range(0, len(inputs), batch_size):
        part = slice(start, start + batch_size)
        for name, a, delta in layer_rows(model, names, inputs[part], targets[part], loss, scale):
            index = partition.index[part].repeat_interleave(a.shape[0] // len(partition.index[part]))
            if name not in sums:
                k = partition.clusters
                empty = torch.zeros(k, dtype=torch.float64)
                sums[name] = (empty, empty.new_zeros(k, a.shape[1]), empty.new_zeros(k, delta.shape[1]))
            counts, inside, outside = sums[name]
            counts += index.bincount(minlength=partition.clusters)
            inside.index_add_(0, index, a)
            outside.index_add_(0, index, delta)
    return {
        name: (outside / counts.clamp_min(1).unsqueeze(1)).mT @ inside
        for name, (counts, inside, outside) in sums.items()
    }


def layer_rows(
    model: nn.Module, names: tuple[str, ...], inputs: Tensor, targets: Tensor, loss: Loss, scale: float
) -> list[tuple[str, Tensor, Tensor]]:
    """(name, a (R, n), δ (R, m)) in float64: the rows that enter each layer's matrix and the gradients at its outputs.

    Σ_r δ_r a_rᵀ is the gradient of ``scale`` · Σ ℓ. Layers whose rows cannot be taken apart (groups) are left out.
    """
    entered: dict[str, tuple[nn.Module, Tensor]] = {}
    probes: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor, name: str = name) -> Tensor:
                entered[name] = (module, (args[0] if args else next(iter(kwargs.values()))).detach())
                # what is added here has the gradient at the output, even if the output is overwritten in place
                probes[name] = torch.zeros_like(output, requires_grad=True)
                return output + probes[name]

            handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        value = loss(logits_of(forward(model, inputs)), targets).sum() * scale
    slopes = torch.autograd.grad(value, list(probes.values()), allow_unused=True)
    found = []
    for (name, (module, entering)), slope in zip(entered.items(), slopes, strict=True):
        if slope is None:
            continue
        try:
            a = patches(module, entering)
        except ValueError:
            continue
        delta = slope.movedim(1, -1) if isinstance(module, nn.modules.conv._ConvNd) else slope
        found.append((name, a.double().flatten(0, 1), delta.double().reshape(-1, delta.shape[-1])))
    return found


def product_bound(a: Tensor, delta: Tensor, partition: Partition) -> float:
    """√S_δ √S_a of rows a (R, n) and δ (R, m): bounds ‖∇_W L − G_K‖, without forming either."""
    inner, outer = (
        (rows - centroids(rows, partition)[partition.index]).square().sum().sqrt()
        for rows in (a.double(), delta.double())
    )
    return float(inner * outer)
