"""What ``nn.TransformerEncoder`` gives at padded places, once its layers are no longer those of its fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold.layers.weights.rule import arguments


def blank_padding(encoder: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    """A hook: zeros behind the last layer at the padded places, wherever torch would have left them out as nested
    tensors do: in eval mode, without gradients, of a mask that leaves the first places of each sample."""
    src, mask, padding = arguments(args, kwargs, ("src", "mask", "src_key_padding_mask"))
    if padding is None or mask is not None or src.dim() != 3 or src.is_nested or encoder.layers[0].training:
        return None
    if not torch.backends.mha.get_fastpath_enabled() or torch.is_autocast_enabled():
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (src, *encoder.layers[0].parameters())):
        return None
    there, blank = padding.logical_not(), output.new_zeros(output.shape[-1])
    if getattr(encoder, "mask_check", True):
        there = there | (there[:, 1:] & ~there[:, :-1]).any()  # of no branch, so that what is traced goes on doing it
    norm: nn.Module | None = encoder.norm
    return torch.where(there.unsqueeze(-1), output, blank if norm is None else norm(blank))
