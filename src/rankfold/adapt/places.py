"""Which layers of a model can be adapted so that PEFT and other readers of LoRA find them, and why others cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankfold.sites import Site, sites, unwrap
from rankfold.sites.wish import NOT_SELECTED, Where

NOT_CHOSEN = "not chosen (where)"
CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
_FUSED, _ENCODER_FORWARD = ("linear1", "linear2"), nn.TransformerEncoderLayer.forward


@dataclass(frozen=True)
class Places:
    """The sites that can be adapted, and every other parameter that a layer owns with the reason."""

    sites: tuple[Site, ...]
    left_out: tuple[tuple[str, str], ...]


def places(model: nn.Module, where: Where | None = None, *, convolutions: bool = True, written: bool = False) -> Places:
    """Linear layers, Hugging Face's ``Conv1D`` and, with ``convolutions``, ungrouped convolutions of ``model``.
    ``written``: those alone whose adapter others read right (``unread``).

    ``where`` as in ``rankfold.sites``. Left out, with the reason: embeddings and what is tied to them, projections
    inside ``nn.MultiheadAttention`` and matrices inside other modules, layers that hang in several places (PEFT would
    adapt the first alone), grouped and transposed convolutions, norms, biases. Works on the meta device.
    """
    root = unwrap(model)
    found, chosen, left = sites(root, where), [], []
    for site in found:
        reason = why_not(root, site, convolutions=convolutions, written=written)
        if reason is None and site.aliases:
            reason = f"the same layer as {', '.join(site.aliases)}, as the block that it is in hangs in several places"
        if reason is None:
            chosen.append(site)
        else:
            left.append((site.parameter, reason))
        if getattr(_module(root, site), "bias", None) is not None:
            left.append((f"{site.name}.bias", "a bias, which is no matrix"))
    told = {name for name, _ in left}
    left += [(name, _in_short(why)) for name, why in found.left_out if name not in told]
    return Places(tuple(chosen), tuple(left))


def readable(
    model: nn.Module, where: Where | None = None, *, convolutions: bool = True
) -> tuple[list[Site], list[tuple[Site, str]]]:
    """The sites whose adapter PEFT reads right, and the other ones with the reason. Other than ``places`` it takes the
    layers of a block that hangs in several places, which one adapter changes in all of them."""
    root = unwrap(model)
    chosen, left = [], []
    for site in sites(root, where):
        reason = why_not(root, site, convolutions=convolutions, written=True)
        if reason is None:
            chosen.append(site)
        else:
            left.append((site, reason))
    return chosen, left


def why_not(root: nn.Module, site: Site, *, convolutions: bool = True, written: bool = False) -> str | None:
    """Why a site cannot be adapted by itself, or with ``written`` is not read right; None where it can."""
    module = _module(root, site)
    if site.layer.lookup:
        return "an embedding" + (f", tied to {', '.join(site.tied_to)}" if site.tied_to else "")
    if module is None or isinstance(module, NonDynamicallyQuantizableLinear):
        return _inside(root, site)
    if site.tied_to:
        return f"tied to {', '.join(site.tied_to)}"
    if site.aliases and len(hung(root)[module]) > 1:
        return f"the same layer as {', '.join(site.aliases)}: PEFT would adapt only the first place"
    if site.kind not in ("Linear", "Conv1D"):
        if site.kind not in CONVOLUTIONS or site.groups > 1:
            return f"a {'grouped ' if site.groups > 1 else ''}{site.kind}"
        if not convolutions:
            return f"a {site.kind}: only linear layers are adapted here"
    return unread(root, site.name, module) if written else None


def hung(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module with the places that it hangs in. One inside a block that is itself shared hangs in one place."""
    found: dict[nn.Module, list[str]] = defaultdict(list)
    for path, parent in unwrap(model).named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                found[child].append(f"{path}.{name}".lstrip("."))
    return found


def unread(root: nn.Module, name: str, layer: nn.Module) -> str | None:
    """Why PEFT reads an adapter of the ``layer`` of this name wrong; None where it reads it right.

    PEFT 0.21.2 makes an adapter's own convolutions without two settings of the base's, and torch's fused kernel reads
    the weight of the base behind what PEFT has put in its place.
    """
    path, _, own = name.rpartition(".")
    if own in _FUSED and _takes_fused_kernel(root.get_submodule(path)):
        return (
            "a layer of nn.TransformerEncoderLayer, whose fused kernel reads its weight in eval mode without what PEFT "
            "adds"
        )
    mode, dilation = getattr(layer, "padding_mode", "zeros"), getattr(layer, "dilation", ())
    if mode != "zeros":
        return f"a {type(layer).__name__} with padding_mode {mode!r}, which PEFT forgets in an adapter"
    if any(step != 1 for step in (dilation if isinstance(dilation, tuple) else (dilation,))):
        return f"a {type(layer).__name__} with dilation {dilation}, which PEFT forgets in an adapter"
    return None


def in_words(left_out: Iterable[tuple[str, str]]) -> str:
    """Names with their reason, each reason once, of more than three names three and how many there are."""
    names: dict[str, list[str]] = {}
    for name, why in left_out:
        names.setdefault(why, []).append(name)
    return "; ".join(
        f"{', '.join(of[:3])}{f' and {len(of) - 3} more' if len(of) > 3 else ''} ({why})" for why, of in names.items()
    )


def _takes_fused_kernel(block: nn.Module) -> bool:
    """Whether torch 2.13 would hand the weights of this block to one kernel, by all that does not depend on inputs.

    By its activation, not by ``activation_relu_or_gelu``, which ``leave_fused_kernels_`` sets here and not in the base
    that the adapter is read beside.
    """
    if not isinstance(block, nn.TransformerEncoderLayer) or type(block).forward is not _ENCODER_FORWARD:
        return False
    attention, activation = block.self_attn, block.activation
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention.in_proj_bias is not None
        and attention._qkv_same_embed_dim
        and attention.num_heads % 2 == 0
        and getattr(block.norm1, "eps", None) == getattr(block.norm2, "eps", None)
        and (activation in (F.relu, F.gelu) or isinstance(activation, nn.ReLU | nn.GELU))
    )


def _inside(root: nn.Module, site: Site) -> str:
    """Of a matrix that is no layer of its own: what it is inside of."""
    path = site.name
    while path:
        path = path.rpartition(".")[0]
        try:
            owner = root.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(owner, nn.MultiheadAttention):
            break
        return f"a matrix inside {type(owner).__name__}, which computes with it in code of its own"
    return "a projection inside nn.MultiheadAttention, which reads it without calling it"


def _module(root: nn.Module, site: Site) -> nn.Module | None:
    try:
        return root.get_submodule(site.name)
    except AttributeError:  # a matrix inside another module, such as nn.MultiheadAttention
        return None


def _in_short(why: str) -> str:
    return "a vector" if why.startswith("a vector") else why if why != NOT_SELECTED else NOT_CHOSEN
