"""Recipes for training products of factors."""

from __future__ import annotations

from rankfold.train.recipe import Recipe

LORITA = Recipe(
    epochs=20, batch_size=256, optimizer="adam", learning_rate=3e-3, weight_decay=1e-3, schedule="cosine", warmup=0.2,
)  # fmt: skip
"""Stable for depth 3 from a balanced start; see docs/lorita.md for what was tried."""

PAPER_FCN = Recipe(
    epochs=20, batch_size=256, optimizer="adam", learning_rate=1e-2, weight_decay=2e-4, schedule="constant", warmup=0.0,
)  # fmt: skip
"""The paper's setting for fully connected networks (section 5.1), to be used with ``start="random"``."""
