"""The commands for C-DLN, and how far each table and figure was run."""

from __future__ import annotations

from functools import partial

from rankfold.papers.index import Experiment, Shown

shown = partial(Shown, "C-DLN")

EXPERIMENTS = (
    Experiment(
        "cdln-factorization", "cdln.matrices", "factorization", "planted matrices, d = 100, r = 10",
        (shown("figure 5", "in full", "r = 10, the authors' notebook's settings and those of the text, one matrix"),),
    ),
    Experiment(
        "cdln-completion", "cdln.matrices", "completion", "planted, d = 100, r = 5 and 10, 30 % of the entries",
        (
            shown("figure 2", "in full", "r = 10, one matrix"),
            shown("figure 6, left", "in full", "r = 10, alternating minimisation beside, one matrix"),
        ),
    ),
    Experiment(
        "cdln-sensing", "cdln.matrices", "sensing", "a planted matrix, d = 200, r = 5, 4,000 Gaussian measurements",
        (shown("figure 14", "in part", "the size of the authors' notebook, 2,000 iterations, one matrix"),),
    ),
    Experiment(
        "cdln-sensing-sizes", "cdln.matrices", "sensing_sizes", "planted matrices, d = 50 and 100, r = 3 and 5",
        (
            shown(
                "figure 14, other sizes", "in part",
                "three sizes of ours: the figure's own d, r and m are not told in the text; ε = 0.01, one matrix each; "
                "with d = 50, r = 3 the compressed network does not arrive",
            ),
        ),
    ),
    Experiment(
        "cdln-incremental", "cdln.matrices", "learned_in_turn",
        "planted matrices, d = 100, r = 3, 5, 10: factorization, completion of 20 %, the text's settings",
        (
            shown("figure 3", "in full", "alignment of the wide network's outer factors, one matrix each"),
            shown("figure 4", "in full", "factorization, r = 5, ε = 0.001, one matrix"),
            shown("figure 7", "in full", "completion of 20 %, r = 5, ε = 0.001, one matrix"),
            shown("figure 9", "in full", "factorization, r = 10, ε = 0.001, one matrix"),
            shown("figure 11", "in full", "completion of 20 %, r = 10, one matrix: not found by either network"),
            shown("figure 12", "in full", "factorization, r = 5: the same values, drawn together"),
            shown("figure 13", "in full", "c_val and c_vec, factorization, r = 3, η = 5, one matrix"),
        ),
    ),
    Experiment(
        "cdln-incremental-sensing", "cdln.matrices", "sensed_in_turn",
        "planted matrices, d = 100, r = 5 and 10, 2,000 Gaussian measurements",
        (
            shown("figure 8", "in part", "r = 5, one matrix; ε = 0.01 in place of the text's 0.001"),
            shown("figure 10", "in part", "r = 10, the same: not found by either network within 5,000 iterations"),
        ),
    ),
    Experiment(
        "cdln-alpha", "cdln.ablations", "alpha", "a planted matrix, completion",
        (shown("figure 15", "in full", "38 values of α, one matrix"),),
    ),
    Experiment(
        "cdln-rate", "cdln.ablations", "rate", "a planted matrix, completion",
        (shown("figure 16", "in full", "twenty rates from 10 to 100 for each network, one matrix"),),
    ),
    Experiment(
        "cdln-start", "cdln.ablations", "start", "planted matrices, factorization and completion",
        (shown("figure 18", "in full", "one matrix each"),),
    ),
    Experiment(
        "cdln-depth", "cdln.ablations", "depth", "a planted matrix, completion",
        (shown("figure 19", "in full", "one matrix"),),
    ),
    Experiment(
        "cdln-svd", "cdln.ablations", "svd", "planted matrices, d = 100 and 300, completion",
        (
            shown(
                "table 3", "in part",
                "both sizes, to an error of 0.01, one matrix each; the paper's rank and tolerance are not told",
            ),
        ),
    ),
    Experiment(
        "cdln-movielens", "cdln.movielens", "reproduce", "MovieLens 100K, splits u1 to u5 as seeds 0 to 4",
        (
            shown(
                "figure 6, right", "in part",
                "split u1 of five; rates are ours, larger than the paper's, tried on u1; the wide network "
                "was stopped after 160 steps, while it still improved",
            ),
        ),
    ),
    Experiment(
        "cdln-movielens-alpha", "cdln.movielens", "alpha", "MovieLens 100K, split u1",
        (shown("figure 17", "in full", "seven values of α, one split"),),
    ),
    Experiment(
        "cdln-mlp", "cdln.networks", "mlp", "MLP of width 784 on FashionMNIST: plain, deep linear, compressed",
        (
            shown(
                "table 1, MLP", "in part",
                "full size, five seeds, with Adam, 30 epochs and a cosine, in place of the paper's gradient descent at "
                "5e-3 (`--setting paper`: 40 epochs of SGD, not run in full). Memory is counted, not measured; times "
                "are of one thread of a processor",
            ),
            shown("figure 21, left", "in part", "the same trainings; validation accuracy in place of test accuracy"),
        ),
    ),
    Experiment(
        "cdln-vit", "cdln.networks", "vit", "ViT of 6 blocks and width 512 on CIFAR-10: plain, deep linear, compressed",
        (
            shown("table 1, ViT", "quick only", "wants a GPU: stage `cdln-vit` of `benchmarks/gpu.py`"),
            shown("figure 21, right", "quick only", "drawn by the same command, from the same networks"),
        ),
    ),
    Experiment(
        "cdln-updates", "cdln.updates", "reproduce",
        "deep linear network and MLP on MNIST, VGG16 and ViT-B on CIFAR-10",
        (
            shown(
                "figure 1", "in part",
                "deep linear network and MLP: all of MNIST, 20 epochs, one seed; VGG16 and ViT-B in quick form, which "
                "want a GPU (stage `cdln-updates`)",
            ),
            shown("figure 20", "in part", "the same trainings"),
        ),
    ),
)  # fmt: skip
WITHOUT = (
    shown("table 2", "nothing to run", "notation"),
    shown("figure 22", "nothing to run", "a drawing of the proof"),
)
