"""What models of transformers are told of layers in training and of what these became, and save."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from rankfold.layers import DynamicTucker, InTraining
from rankfold.layers.weights.refuse import RefusesWeight
from rankfold.sites import Form, pretrained_parts, products, unwrap


def declare_training_(model: nn.Module) -> None:
    """Such a model can be saved in the middle of its training, for whoever goes on with it; loaded as an ordinary one
    its layers would be random, and that is refused."""
    root = unwrap(model)
    if next(pretrained_parts(root), None) is None:
        return
    from rankfold import hub  # imports transformers, which is there already

    hub.declare_(
        root,
        [
            hub.Decision(name, f"{name}.weight", "training", 0, getattr(module, "bias", None) is not None)
            for name, module in root.named_modules()
            if isinstance(module, InTraining) or products(module)
        ],
    )


def declare_folded_(model: nn.Module, low: Mapping[str, InTraining], became: Mapping[nn.Module, nn.Module]) -> None:
    """``low``: the layers that were in training, by name, and what is in their places."""
    root = unwrap(model)
    if next(pretrained_parts(root), None) is None:
        return
    from rankfold import hub

    kept = {name: layer for name, layer in low.items() if isinstance(became[layer], RefusesWeight)}
    hub.declare_(
        root,
        [
            hub.Decision(
                name,
                f"{name}.weight",
                Form.TUCKER if isinstance(layer, DynamicTucker) else Form.FACTORED,
                layer.rank,
                layer.bias is not None,
            )
            for name, layer in kept.items()
        ],
    )
    hub.follow_(root)
