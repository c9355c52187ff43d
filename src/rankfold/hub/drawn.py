"""What transformers draws at random where it loads a folder: what its files held is left alone, in layers too that its
models do not expect."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rankfold.sites import is_pretrained

_DRAW = "_init_weights"  # of a model of transformers, called with each of its modules


def spare_(model: nn.Module) -> None:
    """Until ``drawn_``, a module that was read whole may be other than what the code that would draw it expects: taken
    apart, as attention is, or without a bias."""
    for part in model.modules():
        if is_pretrained(part):
            vars(part)[_DRAW] = partial(_draw, getattr(part, _DRAW))


def drawn_(model: nn.Module) -> None:
    """Have ``model`` draw again as its class does."""
    for part in model.modules():
        vars(part).pop(_DRAW, None)


def _draw(draw: Callable[[nn.Module], None], module: nn.Module) -> None:
    try:
        draw(module)
    except Exception:  # of a model's own code, in the middle of it
        if not _is_read(module):
            raise


def _is_read(module: nn.Module) -> bool:
    """Whether files held all that this module could draw; buffers are drawn by the module that has them."""
    tensors: list[Any] = [*module.parameters(), *module.buffers(recurse=False)]
    return all(getattr(tensor, "_is_hf_initialized", False) for tensor in tensors)
