"""``nn.MultiheadAttention`` taken apart into four linear layers, and the fused kernels that would bypass them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankfold.layers import SplitAttention
from rankfold.layers.padding import blank_padding
from rankfold.observe.watch import always_after_
from rankfold.sites.opener import Opener, carry_, linear
from rankfold.sites.product import ordinary_class, why_anew

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_KINDS = ("weight", "bias")


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
    packed, bias = module.in_proj_weight, module.in_proj_bias  # read once: they may be products
    weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight] if packed is None else _thirds(packed)
    biases = [None, None, None] if bias is None else _thirds(bias)
    for name, weight, of_it in zip(_PROJECTIONS, weights, biases, strict=True):
        new.add_module(name, linear(weight, of_it))
    new.add_module("out_proj", linear(module.out_proj.weight, module.out_proj.bias))
    carry_(module, new)
    new.out_proj.train(module.out_proj.training)  # its own mode, where modes are mixed
    return new


def _thirds(packed: Tensor) -> list[nn.Parameter]:
    return [nn.Parameter(part, packed.requires_grad) for part in packed.detach().chunk(3)]


def _cut(module: nn.Module) -> list[nn.Parameter]:
    packed = (module._parameters.get(f"in_proj_{kind}") for kind in _KINDS)
    return [parameter for parameter in packed if parameter is not None]


def share_(parts: Mapping[nn.Module, nn.Module]) -> None:
    """Of a packed parameter that several of these modules hold, all of what they were split into hold the same pieces.

    ``parts``: what each was split into."""
    first: dict[nn.Parameter, nn.Module] = {}
    for old, new in parts.items():
        for kind in _KINDS if isinstance(old, nn.MultiheadAttention) else ():
            packed = old._parameters.get(f"in_proj_{kind}")
            if packed is not None and (known := first.setdefault(packed, new)) is not new:
                for name in _PROJECTIONS:
                    setattr(new.get_submodule(name), kind, getattr(known.get_submodule(name), kind))


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
    multiply the factors out at each step; the encoder around it would turn padded batches into nested tensors, which
    leaves zeros at the padded places, as it goes on doing.
    """
    paths = tuple(names)
    for path, module in model.named_modules():
        inside = not path or any(name.startswith(path + ".") for name in paths)
        if inside and isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if inside and isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
            module.use_nested_tensor = False
            always_after_(module, blank_padding)


OPENER = Opener(lambda module: isinstance(module, nn.MultiheadAttention), why_not_split, split, _cut)
