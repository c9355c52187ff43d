"""The factors of an adapter trained together, so that the adapted base answers as the tuned model does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.adapt.beside import read_through
from rankfold.adapt.peft_format import Adapter
from rankfold.batches import copied
from rankfold.compress.repair.whole import Steps, Way, tune_whole_
from rankfold.objectives import Objective
from rankfold.run.progress import Progress
from rankfold.sites import Form, Site, unwrap


class Added(nn.Module):
    """A weight with B A added to it, read as the matrix of its layer."""

    def __init__(self, site: Site, right: Tensor, left: Tensor) -> None:
        super().__init__()
        self.geometry = site.layer.geometry(Form.FACTORED)
        self.right, self.left = nn.Parameter(right.clone()), nn.Parameter(left.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.geometry.fold(weight.shape, self.left @ self.right).to(weight.dtype)


@contextmanager
def adapted(model: nn.Module, sites: Mapping[str, Site], adapter: Adapter) -> Iterator[dict[str, Added]]:
    """Within the block every layer of ``model`` that ``adapter`` names computes with its update, in float32."""
    found: dict[str, Added] = {}
    with ExitStack() as stack:
        for name, (right, left) in adapter.pairs.items():
            if len(right):
                layer = model.get_submodule(name)
                place = layer.weight.device
                found[name] = Added(sites[name], right.to(place), left.to(place))  # type: ignore[arg-type]
                stack.enter_context(read_through(layer, sites[name].layer.parameter, found[name]))
        yield found


def refined(
    base: nn.Module,
    tuned: nn.Module,
    sites: Mapping[str, Site],
    adapter: Adapter,
    data: Any,
    objective: Objective,
    how: Steps,
    progress: Progress | None = None,
) -> tuple[Adapter, Way]:
    """``adapter`` after ``how.count`` steps of Adam towards the answers of ``tuned``, the best of six looks at held-out
    samples, and how far the answers were off before and after. Both models are left as they are."""
    model = copied(unwrap(base))
    with torch.no_grad():
        state = model.state_dict()
        for name, tensor in adapter.whole.items():
            state[name].copy_(tensor)
    with adapted(model, sites, adapter) as layers:
        trained = [part for layer in layers.values() for part in (layer.right, layer.left)]
        way = tune_whole_(model, unwrap(tuned), trained, data, objective, how, progress)
        pairs = {name: (layer.right.detach().cpu(), layer.left.detach().cpu()) for name, layer in layers.items()}
    return replace(adapter, pairs=dict(adapter.pairs) | pairs), way
