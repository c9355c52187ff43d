"""How far each factored layer is from the layer it stands for, on data that had no part in factoring it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, copied, forward
from rankfold.compress.applying.apply import apply_
from rankfold.compress.layerwise.preactivations import Followed, Following
from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Profile
from rankfold.costs import evaluating
from rankfold.objectives.units import TOKEN
from rankfold.observe import after
from rankfold.observe.passes import laid_out, layout_for
from rankfold.run.ordinary import ordinarily
from rankfold.sites import Site, SiteList, opened, sites, unwrap


@dataclass
class _Sums:
    """Running sums over rows (N, m) or (N, groups, m), float64: of outputs, of differences, and of their squares."""

    count: int
    output: Tensor
    output_square: Tensor
    difference: Tensor
    difference_square: Tensor

    @classmethod
    def like(cls, rows: Tensor) -> _Sums:
        """None yet, on the device of ``rows``."""
        return cls(0, *torch.zeros(4, *rows.shape[1:], dtype=torch.float64, device=rows.device))

    def add(self, output: Tensor, difference: Tensor) -> None:
        self.count += len(output)
        self.output += output.sum(0)
        self.output_square += output.square().sum(0)
        self.difference += difference.sum(0)
        self.difference_square += difference.square().sum(0)

    def error(self, constant_counts: bool) -> float:
        energy = float((self.output_square - self.output.square() / self.count).sum())
        wrong = self.difference_square
        if not constant_counts:
            wrong = wrong - self.difference.square() / self.count
        return (max(float(wrong.sum()), 0.0) / energy) ** 0.5 if energy > 0 else 0.0


@ordinarily
def layer_errors(
    original: nn.Module,
    plan: Plan,
    data: Any,
    *,
    profile: Profile | None = None,
    method: Method | None = None,
    samples: int = 512,
) -> dict[str, float]:
    """Relative output error of every changed site, given the inputs that this layer has in the ``original``.

    ‖ŷ − y‖ / ‖y − mean y‖ over the samples, which is what ``Entry.predicted_error`` predicts for methods that use data.
    Layers that were fitted one after another are given what the compressed network feeds them, and compared with their
    target at the pre-activation behind them, as ``layerwise.pairs`` has it. Where the new layer has no bias, a constant
    in each channel is not counted: the BatchNorm behind takes it up. Sites that the data never reach are missing.
    ``method``: your own, where the plan was made with one. Cost: one factorization of the model, one pass of
    ``original`` and of every new layer.
    """
    root = unwrap(original)
    new_root = apply_(copied(root), plan, profile, method=method)
    found = sites(root) if profile is None else profile.sites
    if plan.factors is not None:
        return _fitted_errors(root, new_root, plan, found, data, samples)
    sums: dict[str, _Sums] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(root))
        stack.enter_context(evaluating(new_root))
        stack.enter_context(opened(root))
        comparing = {
            entry.site: _compare(found[entry.site], new_root.get_submodule(entry.site), sums) for entry in plan.changed
        }
        layout = layout_for(root, data)
        stack.enter_context(after(root, comparing))
        for batch in batches_of(data, 64, samples):
            forward(root, laid_out(batch, layout))
    return {name: total.error(plan[name].bias) for name, total in sums.items()}


def _compare(site: Site, new: nn.Module, sums: dict[str, _Sums]) -> Callable[..., None]:
    @torch.no_grad()  # a forward may take gradients itself
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        # of a grouped layer as (groups, N, m): rows first
        rows = site.layer.output_rows(output).double().movedim(-2, 0)
        difference = site.layer.output_rows(new(*args, **kwargs)).double().movedim(-2, 0) - rows
        sums.setdefault(site.name, _Sums.like(rows)).add(rows, difference)

    return hook


def _fitted_errors(
    root: nn.Module, new_root: nn.Module, plan: Plan, found: SiteList, data: Any, samples: int
) -> dict[str, float]:
    """Both networks side by side: what the compressed one lacks at each pre-activation, over the target's deviation."""
    sums: dict[str, _Sums] = {}
    with ExitStack() as stack:
        for network in (root, new_root):
            stack.enter_context(evaluating(network))
            stack.enter_context(opened(network))
        for batch in batches_of(data, 256, samples):
            theirs, ours = (_followed(network, plan, batch) for network in (root, new_root))
            for entry in plan.changed:
                if entry.site not in theirs or entry.site not in ours:
                    continue
                (there, _), (here, output) = theirs[entry.site], ours[entry.site]
                if there.pre.shape != here.pre.shape:
                    continue
                rows = found[entry.site].layer.output_rows
                lacking = (rows(there.pre).double() - rows(here.pre).double()).movedim(-2, 0)
                if here.scale is not None:
                    scale = here.scale.reshape(lacking.shape[1:]).to(lacking)
                    lacking = lacking / torch.where(scale == 0, torch.ones_like(scale), scale)
                target = rows(output).double().movedim(-2, 0) + lacking
                sums.setdefault(entry.site, _Sums.like(target)).add(target, -lacking)
    return {name: total.error(True) for name, total in sums.items()}


def _followed(network: nn.Module, plan: Plan, batch: Any) -> dict[str, tuple[Followed, Tensor]]:
    follower, outputs = Following(), {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            outputs[name] = output.clone()
            follower.produced(name, output)

        return hook

    with after(network, {entry.site: watch(entry.site) for entry in plan.changed}), follower:
        forward(network, batch)
    return {name: (known, outputs[name]) for name, known in follower.found.items()}


def over_fitted(plan: Plan, measured: Mapping[str, float], *, method: Method | None = None) -> tuple[str, ...]:
    """Sites whose error on held-out data is far above the predicted one: too little calibration data for their size.

    Far: more than half as much again, and by more than 0.03 of the output's norm. None for methods without data,
    which predict the error of the weight; nor of language models, of which errors are predicted in the metric of the
    tokens: it leaves to queries and keys much that no answer notices, however many samples there are.
    """
    if not method_named(plan.method if method is None else method).needs_data or plan.calibration.get("unit") == TOKEN:
        return ()
    return tuple(
        entry.site
        for entry in plan.changed
        if measured.get(entry.site, 0.0) > max(1.5 * entry.predicted_error, entry.predicted_error + 0.03)
    )
