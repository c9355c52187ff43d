"""Which parameters an optimizer treats alike: by weight decay, and by a learning-rate scale of their own."""

from typing import Any

from torch import nn

SCALES = "rate_scales"  # an attribute of a module: {name of one of its own parameters: factor of the learning rate}


def rate_scales(model: nn.Module) -> dict[nn.Parameter, float]:
    """The parameters of `model` whose learning rate is scaled, and by how much; every other one has 1."""
    return {
        module._parameters[name]: scale  # type: ignore[misc]
        for module in model.modules()
        for name, scale in getattr(module, SCALES, {}).items()
        if module._parameters.get(name) is not None
    }


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float = 0.0, *, decay_vectors: bool = False
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer, as `fit` makes them, of the parameters that require a gradient.

    Vectors and scalars have no weight decay unless `decay_vectors`. Parameters with a learning-rate scale (those of
    `rankfold.induce.cdln_` and `rankfold.adapt.deep_lora_`) have groups of their own, with `rate_scale` beside `lr`; a
    scheduler that multiplies `lr` keeps the ratio.
    """
    scales = rate_scales(model)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decayed = decay_vectors or parameter.ndim > 1
            groups.setdefault((scales.get(parameter, 1.0), not decayed), []).append(parameter)
    result = []
    for (scale, exempt), members in sorted(groups.items(), key=lambda item: (item[0][0] != 1.0, item[0])):
        group = {"params": members, "weight_decay": 0.0 if exempt else weight_decay, "lr": learning_rate * scale}
        result.append(group | ({} if scale == 1.0 else {"rate_scale": scale}))
    return result
