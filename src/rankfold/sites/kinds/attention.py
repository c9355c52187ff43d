"""``nn.MultiheadAttention`` taken apart into four linear layers, and the fused kernels that would bypass them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankfold.layers import SplitAttention
from rankfold.sites.hooks import carry_hooks_
from rankfold.sites.opener import Opener, linear
from rankfold.sites.product import ordinary_class, why_anew


def why_not_split(module: nn.MultiheadAttention) -> str | None:
    """Why this attention module cannot be taken apart, or None if it can."""
    kind = ordinary_class(module)
    if kind.forward is not nn.MultiheadAttention.forward:
        return f"{kind.__name__} overrides the forward of nn.MultiheadAttention"
    if module.bias_k is not None or module.add_zero_attn:
        return "attention with add_bias_kv or add_zero_attn is not taken apart"
    return why_anew(module) or why_anew(module.out_proj)


def split(module: nn.MultiheadAttention) -> SplitAttention:
    """The same attention with q, k, v and output projections as linear layers that share its storage."""
    new = SplitAttention(module.embed_dim, module.num_heads, module.dropout, module.batch_first)
    width = module.embed_dim
    packed = module.in_proj_weight  # read once: it may be a product
    if packed is not None:
        grad = packed.requires_grad
        weights = [packed.detach()[i * width : (i + 1) * width] for i in range(3)]
    else:
        separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        grad = module.q_proj_weight.requires_grad
        weights = [weight.detach() for weight in separate]
    biases: list[Tensor | None] = [None, None, None]
    if module.in_proj_bias is not None:
        biases = [module.in_proj_bias.detach()[i * width : (i + 1) * width] for i in range(3)]
    for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        new.add_module(name, linear(weight, bias, grad))
    out = module.out_proj
    out_bias = None if out.bias is None else out.bias.detach()
    new.add_module("out_proj", linear(out.weight.detach(), out_bias, out.weight.requires_grad))
    carry_hooks_(module, new)
    new.train(module.training)
    new.out_proj.train(module.out_proj.training)  # its own mode, where modes are mixed
    return new


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Within the block attention calls its submodules one by one in eval mode too; the setting is left as found."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def leave_fused_kernels_(model: nn.Module, names: Iterable[str]) -> None:
    """Make every transformer encoder layer that holds one of these sites call its submodules.

    In eval mode ``nn.TransformerEncoderLayer`` hands its children's ``weight`` to one fused kernel, which would
    multiply the factors out at each step; the encoder around it would turn padded batches into nested tensors.
    """
    paths = tuple(names)
    for path, module in model.named_modules():
        inside = not path or any(name.startswith(path + ".") for name in paths)
        if inside and isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if inside and isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


OPENER = Opener(lambda module: isinstance(module, nn.MultiheadAttention), why_not_split, split)
