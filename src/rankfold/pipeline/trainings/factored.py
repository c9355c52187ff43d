"""A network that was trained at low rank, saved in its factors, as ``rankfold compress`` would have left it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankfold.batches import copied, first_inputs
from rankfold.compress.applying.apply import apply_
from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import Decomposition
from rankfold.compress.methods.truncate import Truncate, Truncated
from rankfold.compress.methods.tucker import Tucker
from rankfold.compress.planning.planner import plan
from rankfold.compress.ranks.budget import Ranks
from rankfold.costs import Example
from rankfold.objectives import Inferred
from rankfold.pipeline.compression.outcome.delivery import model_notes
from rankfold.sites import Form, Site
from rankfold.store import save


def save_factored(
    model: nn.Module, ranks: Mapping[str, int], tucker: bool, directory: Path, spec: str, data: Any, objective: Inferred
) -> int | None:
    """The parameters in factors, where those are fewer: then ``directory`` holds them, and the plan that they are.

    ``model``: folded, its layers exactly of these ``ranks``, so that truncation loses nothing; ``tucker``: kernels were
    trained in Tucker's form, all else as matrices.
    """
    example = Example.of(first_inputs(model, data.validation))
    method = AsTrained() if tucker else Truncate()
    made = plan(model, Ranks(ranks), method, example=example)
    gain = {e.site: e.rank for e in made.changed if e.params < _numbers(model.get_submodule(e.site))}
    if len(gain) < len(made.changed) and gain:  # others would take more numbers than the layer itself
        made = plan(model, Ranks(gain), method, example=example)
    if made.after.params >= made.before.params:
        return None
    small = apply_(copied(model), made, method=method)
    save(small, made, directory, notes=model_notes(spec, data, example, objective))
    return int(made.after.params)


def _numbers(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


@dataclass(frozen=True)
class AsTrained:
    """Tucker's form for the kernels that have one, and truncation for what are matrices."""

    name: str = "as-trained"
    forms: frozenset[Form] = frozenset({Form.FACTORED, Form.TUCKER})
    needs_data: bool = False

    def decompose(
        self,
        site: Site,
        form: Form,
        weight: Tensor,
        statistics: SiteStatistics | None = None,
        bias: Tensor | None = None,
    ) -> Decomposition:
        if form is Form.TUCKER:
            return Tucker().decompose(site, form, weight)
        made = Truncate().decompose(site, form, weight)
        return _Never(made.form, made.matrix) if Form.TUCKER in site.forms else made


class _Never(Truncated):
    """No rank is offered in this form."""

    @property
    def ranks(self) -> range:
        return range(0)
