"""Factors in int8 handed to torchao, whose kernels multiply by whole numbers without forming the weight first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import copied
from rankfold.export.errors import ExportError
from rankfold.layers.rounded import RoundedLinear


def to_torchao(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which int8 factors of linear layers are tensors of torchao; the model stays as it is.

    The codes stay what they are. torchao knows one scale for each row: both scales of a direction go to the row of the
    first factor, and the second one has none. Such a model runs, and is compiled, as torchao says; it is no model that
    rankfold saves. ``ExportError`` where torchao is not installed, where no linear layer has int8 factors, and for
    float16, in which the joint scales are too small. Cost: the model beside itself.
    """
    try:
        from torchao.quantization import Int8Tensor
    except ImportError as error:
        raise ExportError(f"this needs torchao with its Int8Tensor ({error}): pip install torchao") from None
    made = copied(model)
    pairs = [each for each in made.modules() if isinstance(getattr(each, "down", None), RoundedLinear)]
    if not pairs:
        raise ExportError(
            "no linear layer of this model has int8 factors: compress it with int8 among the forms (forms=, --forms)"
        )
    for pair in pairs:
        layer: Any = pair
        if layer.down.scale.dtype == torch.float16:
            raise ExportError(
                "the products of the int8 scales are too small for float16: convert the model to bfloat16 or float32"
            )
        joint = layer.down.scale.float() * layer.up.scale.float()
        layer.down = _handed(layer.down, joint, Int8Tensor)
        layer.up = _handed(layer.up, torch.ones(layer.up.out_features, device=joint.device), Int8Tensor)
    return made


def _handed(stage: Any, scale: Tensor, kind: Any) -> nn.Linear:
    """An ordinary linear layer of the same codes, with one scale for each row."""
    new = nn.Linear(stage.in_features, stage.out_features, bias=False, device="meta")
    codes, dtype = stage.codes, stage.scale.dtype
    weight = kind(codes, scale.to(dtype).unsqueeze(1), [1, stage.in_features], dtype)
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.bias = stage.bias
    return new.train(stage.training)
