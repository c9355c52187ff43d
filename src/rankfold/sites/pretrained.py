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


def pretrained_parts(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost models of transformers in ``root``, itself among them, each with its path."""
    if is_pretrained(root):
        yield "", root
        return
    for name, child in root.named_children():
        for path, part in pretrained_parts(child):
            yield f"{name}.{path}".rstrip("."), part
