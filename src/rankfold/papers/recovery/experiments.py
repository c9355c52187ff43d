"""The commands for the recovery guarantees, and how far each theorem was tried. The document has no table or figure."""

from __future__ import annotations

from functools import partial

from rankfold.papers.index import Experiment, Shown

shown = partial(Shown, "RG")

EXPERIMENTS = (
    Experiment(
        "recovery-planted", "recovery.planted", "reproduce",
        "planted layers: error against samples, width, rank, noise",
        (
            shown("theorem 3.1", "in full", "four or five values of each size, five seeds, 20 draws each"),
            shown("theorem 4.4", "in full", "the same, uniform noise, both constraints; unknown constant taken as 1"),
            shown("theorem 4.9", "in full", "the same behind a ReLU, with the box |X̃Z| ≤ α; the constant taken as 1"),
        ),
    ),
    Experiment(
        "recovery-phase", "recovery.phase", "reproduce",
        "not in the paper: how many entries for each degree of freedom each estimator takes", (),
    ),
    Experiment(
        "recovery-layers", "recovery.layers", "reproduce",
        "not in the paper: truncation without data against projection, layer by layer and end to end; FCN-6, MNIST", (),
    ),
)  # fmt: skip
WITHOUT = (
    Shown("talk", "no table, no figure", "nothing to run", "an abstract: its bilevel problem prints no numbers"),
)
