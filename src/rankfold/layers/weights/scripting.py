"""What ``torch.jit.script`` cannot compile, said before it tries."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

EXCLUDED = "(--exclude PATTERN; in Python where=)"


class Traced(nn.Module):
    """A layer that ``torch.jit.trace`` follows and ``torch.jit.script`` cannot compile.

    ``unscripted``: why, and without what a network is compressed that is to be compiled.
    """

    unscripted: ClassVar[tuple[str, str]]

    def __prepare_scriptable__(self) -> Any:
        """Asked by ``torch.jit.script``."""
        why, without = self.unscripted
        raise NotImplementedError(
            f"torch.jit.script cannot compile a {type(self).__name__}, {why}: use torch.jit.trace(model, example), or "
            f"compress without {without}"
        )
