"""The commands for LoRITa, and how far each table and figure was run."""

from __future__ import annotations

from functools import partial

from rankfold.papers.index import Experiment, Shown

shown = partial(Shown, "LoRITa")

EXPERIMENTS = (
    Experiment(
        "lorita-table-1a", "lorita.table_1a", "reproduce", "FCN-6, 8, 10 on MNIST, N = 1, 2, 3",
        (
            shown(
                "table 1a, FCN", "in part",
                "FCN-6, 8 and 10 with N = 1, 2, 3, 20 epochs, three seeds of the weight decay that validation chose "
                "among 5e-4, 1e-3 and 2e-3 with the first; FCN-10 over five seeds with decay let go late (N = 3) and "
                "1e-4 (N = 1). FCN-6 also in the paper's own setting (random start, rate 1e-2, six decays from 5e-6), "
                "five seeds; FCN-8 and 10 in it were not run: 36 trainings and more seeds of those chosen, two hours",
            ),
            shown("figure 3", "in part", "local and global truncation of the same networks"),
            shown("figure 6", "in part", "the first two layers of the same networks, FCN-8 among them"),
        ),
    ),
    Experiment(
        "lorita-vit", "lorita.vit", "plain", "ViT-L8 with 1, 4, 8 heads on CIFAR-10, N = 1, 2, 3",
        (
            shown(
                "table 1a, ViT", "quick only",
                "no augmentation; attention over-parametrised. In full 54 trainings of 100 epochs, which want a GPU",
            ),
            shown("figure 5, no augmentation", "quick only", "drawn by the same command, from the same networks"),
        ),
    ),
    Experiment(
        "lorita-vit-augmented", "lorita.vit", "augmented", "ViT-L4, L8, L16 with 8 heads on CIFAR-10, N = 1, 2",
        (
            shown("table 1b, ViT", "quick only", "augmentation. In full 36 trainings of 100 epochs: a GPU"),
            shown("figure 5, augmentation", "quick only", "drawn by the same command, from the same networks"),
        ),
    ),
    Experiment(
        "lorita-cnn", "lorita.cnn", "reproduce", "VGG13, ResNet18 on CIFAR-10 or, with --data, CIFAR-100, N = 1, 2",
        (
            shown("table 1b, CNN", "quick only", "in full 12 trainings of 100 epochs, which want a GPU"),
            shown("figure 4, CIFAR-10", "quick only", "drawn by the same command, from the same networks"),
            shown(
                "figure 4, CIFAR-100", "quick only",
                "`--data cifar100`, the decays of the text; the data were not at hand",
            ),
        ),
    ),
    Experiment(
        "lorita-table-2", "lorita.table_2", "reproduce", "ResNet20 on CIFAR-10, N = 1, 2, 3",
        (
            shown(
                "table 2", "in part",
                "N = 1 and 3 from scratch for 16 epochs on 45,000 images, decay 1e-3, one seed, compressed by "
                "projection (`benchmarks/lorita_depth.py`); GSVT, ISVT and one epoch of fine-tuning from another "
                "network, by `lorita-beyond`. The protocol itself, hundreds of epochs for each N, wants a GPU",
            ),
        ),
    ),
    Experiment(
        "lorita-table-3", "lorita.table_3", "reproduce", "VGG16 on CIFAR-10, N = 1, 2, 3",
        (shown("table 3", "quick only", "wants a GPU: stage `vgg16-products` of `benchmarks/gpu.py`"),),
    ),
    Experiment(
        "lorita-table-4", "lorita.imagenet", "table_4", "ResNet18 on ImageNet, or any set of --data, N = 1, 2, 3",
        (shown("table 4", "quick only", "needs ImageNet, given as `--data imagefolder:DIR`, and GPUs"),),
    ),
    Experiment(
        "lorita-table-5", "lorita.imagenet", "table_5", "ResNet34 on ImageNet, or any set of --data, N = 1, 2",
        (shown("table 5", "quick only", "needs ImageNet, given as `--data imagefolder:DIR`, and GPUs"),),
    ),
    Experiment(
        "lorita-beyond", "lorita.beyond", "reproduce",
        "not in the paper: projection, loss-aware ranks, distillation, against ISVT at the same sizes; ResNet20, N = 3",
        (),
    ),
)  # fmt: skip
WITHOUT = (
    shown("figure 1", "nothing to run", "a drawing of the method"),
    shown("figure 2", "nothing to run", "a drawing of the method"),
    shown("table 6", "nothing to run", "its rows are those of tables 2 and 3 put together"),
)
