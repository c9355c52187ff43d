"""Recipes for training products of factors."""

from __future__ import annotations

from rankfold.train.recipe import Recipe

LORITA = Recipe(
    epochs=20, batch_size=256, optimizer="adam", learning_rate=5e-3, weight_decay=1e-3, schedule="cosine", warmup=0.2,
    clip_norm=1.0,
)  # fmt: skip
"""For depth 3 from a balanced start: no run fell to chance. docs/lorita.md says what was tried, and how often."""

PAPER_FCN = Recipe(
    epochs=20, batch_size=256, optimizer="adam", learning_rate=1e-2, weight_decay=2e-4, schedule="constant", warmup=0.0,
)  # fmt: skip
"""The paper's setting for fully connected networks (section 5.1): its rate, and the largest decay of its grid.

To be used with ``start="random"``. Epochs, batch size and schedule are not printed; these are ours.
"""
