"""Which layers of a model of transformers may be factored where it goes through block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rankfold.sites import hidden
from rankfold.sites.wish import Where, wanted
from rankfold.zoo.pretrained import table_of


@dataclass(frozen=True)
class Body:
    """Those asked for that lie in the network as they are; no embeddings, and no head, which is what transformers puts
    behind the body of a network."""

    root: Any
    asked: Where | None

    def __call__(self, name: str, module: nn.Module) -> bool:
        root, body = self.root, f"{self.root.base_model_prefix}."
        tables = table_of(root), root.get_output_embeddings()
        if isinstance(module, nn.Embedding) or module in tables or hidden(root, name):
            return False
        if root.base_model is not root and not name.startswith(body):
            return False
        return self.asked is None or wanted(self.asked, (name,), module)
