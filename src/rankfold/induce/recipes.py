"""Recipes for training products of factors."""

from __future__ import annotations

from dataclasses import replace

from rankfold.train.recipe import Recipe, Relax

LORITA = Recipe(
    epochs=20, batch_size=256, optimizer="adam", learning_rate=5e-3, weight_decay=1e-3, schedule="cosine", warmup=0.2,
    clip_norm=1.0,
)  # fmt: skip
"""For depth 3 from a balanced start: no run fell to chance. docs/lorita.md says what was tried, and how often."""

LORITA_RELAXED = replace(LORITA, epochs=40, weight_decay=4e-3, relax=Relax(after=0.5, factor=0.025))
"""Lower ranks, at a little accuracy and twice the time: four times the decay for half of the run, then next to none."""

PAPER_FCN = Recipe(
    epochs=20, batch_size=256, optimizer="adam", learning_rate=1e-2, weight_decay=2e-4, schedule="constant", warmup=0.0,
)  # fmt: skip
"""The paper's setting for fully connected networks (section 5.1): its rate, and the largest decay of its grid.

To be used with ``start="random"``. Epochs, batch size and schedule are not printed; these are ours.
"""
