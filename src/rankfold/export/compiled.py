"""Models as torch compiles them: each apart, and for one very input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rankfold.batches import as_found
from rankfold.costs import Example, evaluating
from rankfold.export.errors import ExportError, first_line, quiet


def compiled(models: Mapping[str, nn.Module], example: Example) -> dict[str, nn.Module]:
    """Every model after ``torch.compile``, called with the example once. ``ExportError`` for one that fails, or of
    which torch compiles nothing.

    What torch compiles it keeps with the code of a class, so many versions and no more: what comes after those it runs
    as it is, in silence. So what was compiled before is dropped, and there is room for all of these models.
    """
    import torch._dynamo as dynamo

    dynamo.reset()
    limits = {name: len(models) * getattr(dynamo.config, name) for name in _LIMITS}
    with dynamo.config.patch(limits):
        made = {id(model): _compiled(model, example) for model in models.values()}
    return {name: made[id(model)] for name, model in models.items()}


_LIMITS = ("recompile_limit", "accumulated_recompile_limit")  # of versions of one code


class _Backend:
    """What torch does by default with a graph. One for each model, so that no two take a graph of the other's."""

    graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)


def _compiled(model: nn.Module, example: Example) -> nn.Module:
    backend = _Backend()
    made: Any = torch.compile(model, backend=backend, dynamic=False)
    given = example.fitting(model.modules())
    with evaluating(model), as_found(model), quiet():
        try:
            made(*given.args, **given.kwargs)
        except Exception as error:  # the compiler raises exceptions of many kinds, with pages of text
            raise ExportError(f"torch.compile fails for this model: {first_line(error)}") from error
    if not backend.graphs:
        raise ExportError(
            "torch.compile compiles no part of this model, whose time would be that of eager: measure it as it is "
            "(target eager), or take torch.compiler.disable off its forward"
        )
    return made
