"""The commands for neural rank collapse, and how far each figure was run."""

from __future__ import annotations

from functools import partial

from rankfold.papers.index import Experiment, Shown

shown = partial(Shown, "NRC")

EXPERIMENTS = (
    Experiment(
        "nrc-figure-1", "collapse.figure_1", "reproduce", "five Gaussian blobs in dimension 10, λ × σ",
        (
            shown(
                "figure 1, small", "in part",
                "a size of ours: 20 cells, one seed; the constant C and C·TCV/κ of theorem 3.4 beside the chain",
            ),
        ),
    ),
    Experiment(
        "nrc-figure-1-full", "collapse.figure_1", "full", "ten Gaussian blobs in dimension 50, λ × σ",
        (
            shown(
                "figure 1", "in part",
                "81 cells, one seed of three, at most 3,000 iterations. The sizes are a reading: the text at hand lost "
                "its numbers. Two more seeds are 100 minutes of processor",
            ),
        ),
    ),
    Experiment(
        "nrc-figure-2", "collapse.figure_2", "reproduce", "Gaussian blobs, deep linear chains",
        (
            shown(
                "figure 2", "in part",
                "25 cells, three seeds; the sizes are ours. Nearer to the Schatten threshold than to ridge in 68 of "
                "the 75; theorem 5.3: 0 violations in 150 comparisons, vacuous in 72 cells",
            ),
        ),
    ),
    Experiment(
        "nrc-figure-3", "collapse.figure_3", "reproduce", "MNIST, 784-256-256-256-10",
        (
            shown(
                "figure 3", "in full",
                "55,000 training images, 300 epochs, four λ, one seed; widths and λ are a reading",
            ),
        ),
    ),
    Experiment(
        "nrc-figure-4", "collapse.figure_4", "width", "MNIST, four hidden layers, width 64 to 1,024",
        (
            shown(
                "figure 4", "in part",
                "10,000 images, λ = 3e-3 for 50 epochs and 1e-2 for 50 and 300, one seed. Smaller λ and all images "
                "were not run",
            ),
        ),
    ),
    Experiment(
        "nrc-figure-5", "collapse.figure_4", "depth", "MNIST, width 256, two to eight hidden layers",
        (shown("figure 5, width 256", "in part", "10,000 images, three λ, one seed"),),
    ),
    Experiment(
        "nrc-figure-5-full", "collapse.figure_4", "depth_full", "MNIST, width 1568, two to eight hidden layers",
        (shown("figure 5", "quick only", "width 1568 was not run: 21 trainings"),),
    ),
    Experiment(
        "collapse-forecast", "collapse.forecast", "reproduce", "not in the paper: forecast of accuracy, digits", ()
    ),
    Experiment("collapse-warmup", "collapse.warmup", "reproduce", "not in the paper: training on centroids, MNIST", ()),
)  # fmt: skip
WITHOUT: tuple[Shown, ...] = ()
