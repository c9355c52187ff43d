"""Parameters that several layers share, given to each as its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from rankfold.sites.earlier import warn_of_earlier_optimizers
from rankfold.sites.pretrained import pretrained_parts


def untie_(model: nn.Module) -> nn.Module:
    """Give every parameter that several modules hold to the first alone, and the others copies.

    Outputs stay as they are; afterwards each place is a site of its own, such as an embedding and the head that was its
    transpose. A model of transformers is told (``tie_word_embeddings``), and stays untied when it is saved and loaded.
    One module in several places stays one. Warns of an optimizer that was built before: it does not know the copies.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Cost: the copies, in parameters and memory, so that a budget must first win them back.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> len(rf.sites(model).reducible), len(rf.sites(rf.untie_(model)).reducible)
        (0, 2)
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen: set[nn.Parameter] = set()
    shared: dict[str, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter in seen:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                shared[names[parameter]] = parameter
            seen.add(parameter)
    if shared:
        warn_of_earlier_optimizers(shared, "and not the copies that other layers have of it now", "untie_")
        for _, part in pretrained_parts(model):
            _tell(part)
    return model


def _tell(part: Any) -> None:
    for config in {id(each.config): each.config for each in part.modules() if hasattr(each, "config")}.values():
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    for module in part.modules():
        if hasattr(module, "all_tied_weights_keys"):
            module.all_tied_weights_keys = {}
