"""Hooks of a layer that is replaced: the new layer takes them over, and their handles go on removing them."""

from __future__ import annotations

from torch import nn

_TABLES = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def carry_hooks_(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` the tables of hooks of ``old`` themselves: a handle only knows its table."""
    for name in _TABLES:
        setattr(new, name, getattr(old, name))
    new._is_full_backward_hook = old._is_full_backward_hook
