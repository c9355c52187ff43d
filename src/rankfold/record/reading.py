"""Reading weights out of a model in training: copies, whatever the model is wrapped in or has become."""

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from rankfold.sites import Form, Site, opened, unwrap

GONE = "the model no longer has a weight of this name"


def read(model: nn.Module, sites: Iterable[Site]) -> dict[str, Tensor | str]:
    """A copy on the CPU, in its own dtype, of the matrix of every site; or the reason why it cannot be read now.

    Looks through ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``; of a parametrized or factored
    layer it is the product, not rounded by an autocast around the caller. Nothing in the model changes.
    """
    root = unwrap(model)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in {parameter.device.type for parameter in root.parameters()} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(opened(root))
        return {site.name: _copy(root, site) for site in sites}


def _copy(root: nn.Module, site: Site) -> Tensor | str:
    try:
        weight = site.weight(root)
    except AttributeError:
        return GONE
    if hasattr(weight, "full_tensor"):
        return "sharded over processes (DTensor): gather it first"
    if weight.is_meta:
        return "its weights are on the meta device, without values: load them first"
    try:
        matrix = site.layer.geometry(Form.FACTORED).matrix(weight)
    except (RuntimeError, ValueError):
        return f"its weight now has another shape, {tuple(weight.shape)}"
    return matrix.to("cpu", copy=True, memory_format=torch.contiguous_format)
