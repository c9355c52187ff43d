"""The commands for training at low rank (DLRT, CondLR, dEBORA), which are of none of the documents of the index."""

from __future__ import annotations

from rankfold.papers.index import Experiment, Shown

EXPERIMENTS = (
    Experiment(
        "dlrt-lenet5",
        "dlrt.lenet5",
        "reproduce",
        "not in the index: LeNet5 at low rank from the first step, beside what DLRT's authors logged; MNIST",
        (),
    ),
    Experiment(
        "condlr-mnist",
        "dlrt.condlr",
        "reproduce",
        "not in the index: what low rank costs under PGD, and what a bound on condition numbers gives back; MNIST",
        (),
    ),
    Experiment(
        "ways-to-low-rank",
        "dlrt.ways",
        "reproduce",
        "not in the index: ten ways to low rank by accuracy, size, time, memory; FCN, LeNet5, ResNet20, a transformer",
        (),
    ),
    Experiment(
        "adaptation-table",
        "dlrt.adaptation",
        "reproduce",
        "not in the index: six ways to adapt by low rank at equal size; four adaptations, paired over seeds",
        (),
    ),
    Experiment(
        "debora-bilevel",
        "dlrt.debora",
        "reproduce",
        "not in the index: hypergradients of dEBORA beside finite differences, and its nuclear ball; planted matrices",
        (),
    ),
)
WITHOUT: tuple[Shown, ...] = ()
