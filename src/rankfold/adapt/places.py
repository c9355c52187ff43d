"""Which layers of a model can be adapted so that PEFT and other readers of LoRA find them, and why others cannot."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankfold.sites import Site, sites, unwrap
from rankfold.sites.wish import NOT_SELECTED, Where

NOT_CHOSEN = "not chosen (where)"
CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


@dataclass(frozen=True)
class Places:
    """The sites that can be adapted, and every other parameter that a layer owns with the reason."""

    sites: tuple[Site, ...]
    left_out: tuple[tuple[str, str], ...]


def places(model: nn.Module, where: Where | None = None, *, convolutions: bool = True, written: bool = False) -> Places:
    """Linear layers, Hugging Face's ``Conv1D`` and, with ``convolutions``, ungrouped convolutions of ``model``.
    ``written``: those alone whose adapter others read right (``unread``).

    ``where`` as in ``rankfold.sites``. Left out, with the reason: embeddings and what is tied to them, projections
    inside ``nn.MultiheadAttention``, layers that hang in several places (PEFT would adapt the first alone), grouped
    and transposed convolutions, norms, biases. Works on the meta device.
    """
    root = unwrap(model)
    found, chosen, left = sites(root, where), [], []
    for site in found:
        reason = why_not(root, site, convolutions=convolutions)
        if reason is None and written:
            reason = unread(_module(root, site))
        if reason is None:
            chosen.append(site)
        else:
            left.append((site.parameter, reason))
        if getattr(_module(root, site), "bias", None) is not None:
            left.append((f"{site.name}.bias", "a bias, which is no matrix"))
    told = {name for name, _ in left}
    left += [(name, _in_short(why)) for name, why in found.left_out if name not in told]
    return Places(tuple(chosen), tuple(left))


def why_not(root: nn.Module, site: Site, *, convolutions: bool = True) -> str | None:
    """Why a site cannot be adapted by itself; None where it can."""
    module = _module(root, site)
    if site.layer.lookup:
        return "an embedding" + (f", tied to {', '.join(site.tied_to)}" if site.tied_to else "")
    if module is None or isinstance(module, NonDynamicallyQuantizableLinear):
        return "a projection inside nn.MultiheadAttention, which reads it without calling it"
    if site.tied_to:
        return f"tied to {', '.join(site.tied_to)}"
    if site.aliases:
        return f"the same layer as {', '.join(site.aliases)}: PEFT would adapt only the first place"
    if site.kind in ("Linear", "Conv1D"):
        return None
    if site.kind not in CONVOLUTIONS or site.groups > 1:
        return f"a {'grouped ' if site.groups > 1 else ''}{site.kind}"
    return None if convolutions else f"a {site.kind}: only linear layers are adapted here"


def unread(layer: nn.Module | None) -> str | None:
    """Why PEFT reads an adapter of a layer wrong; None where it reads it right. PEFT 0.21.2 makes an adapter's own
    convolutions without these two settings of the base's."""
    mode, dilation = getattr(layer, "padding_mode", "zeros"), getattr(layer, "dilation", ())
    if mode != "zeros":
        return f"a {type(layer).__name__} with padding_mode {mode!r}, which PEFT forgets in an adapter"
    if any(step != 1 for step in (dilation if isinstance(dilation, tuple) else (dilation,))):
        return f"a {type(layer).__name__} with dilation {dilation}, which PEFT forgets in an adapter"
    return None


def _module(root: nn.Module, site: Site) -> nn.Module | None:
    try:
        return root.get_submodule(site.name)
    except AttributeError:  # a projection inside nn.MultiheadAttention
        return None


def _in_short(why: str) -> str:
    return "a vector" if why.startswith("a vector") else why if why != NOT_SELECTED else NOT_CHOSEN
