"""Models of transformers inside a model, told without importing that library."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def is_pretrained(module: nn.Module) -> bool:
    """Whether this is a ``PreTrainedModel`` of transformers."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__ == "transformers.modeling_utils"
        for kind in type(module).__mro__
    )


def is_causal(model: nn.Module) -> bool:
    """Whether it is a language model that goes from left to right: one of those that transformers itself calls so, not
    all of whose names say it (``GPT2LMHeadModel``), or any other whose name says it."""
    if not is_pretrained(model) or type(model).__name__.endswith("ForCausalLM"):
        return type(model).__name__.endswith("ForCausalLM")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    known = {name for names in KNOWN.values() for name in ((names,) if isinstance(names, str) else names)}
    return any(kind.__name__ in known for kind in type(model).__mro__)


def pretrained_parts(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost models of transformers in ``root``, itself among them, each with its path."""
    if is_pretrained(root):
        yield "", root
        return
    for name, child in root.named_children():
        for path, part in pretrained_parts(child):
            yield f"{name}.{path}".rstrip("."), part
