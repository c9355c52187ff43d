"""What the LoRITa paper printed ("Structure-preserving network compression via low-rank induced training through
linear layers composition"): its tables as data, row by row.

Accuracies of table 1 are fractions, those of tables 2 to 5 per cent, as they stand there. ``flops`` are millions of
multiply-adds as ptflops counts, ``params`` millions. A ``note`` marks a row whose own columns contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Depths = Mapping[int, float]  # number of composed matrices N → test accuracy

TABLE_1A: Mapping[str, Depths] = {  # without data augmentation
    "fcn-6": {1: 0.983, 2: 0.982, 3: 0.977},
    "fcn-8": {1: 0.983, 2: 0.982, 3: 0.977},
    "fcn-10": {1: 0.983, 2: 0.981, 3: 0.977},
    "vit-l8-h1": {1: 0.717, 2: 0.729, 3: 0.727},
    "vit-l8-h4": {1: 0.710, 2: 0.718, 3: 0.701},
    "vit-l8-h8": {1: 0.705, 2: 0.719, 3: 0.714},
}
TABLE_1B: Mapping[str, Depths] = {  # with data augmentation, CIFAR-10
    "vgg13-bn": {1: 0.919, 2: 0.922},
    "resnet18": {1: 0.928, 2: 0.927},
    "vit-l4-h8": {1: 0.861, 2: 0.852},
    "vit-l8-h8": {1: 0.865, 2: 0.857},
    "vit-l16-h8": {1: 0.856, 2: 0.867},
}

# Section 5.1: fractions of the singular values below which accuracy drops, fcn-10 under global truncation
FCN10_RETAINED: Depths = {1: 0.22, 3: 0.15}
# ViT-L8-H8 without augmentation
VIT_RETAINED: Depths = {1: 0.15, 3: 0.05}

FCN_DECAYS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4)  # printed with 2e-4 twice: the third was taken for 2e-5
VIT_DECAYS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
CNN_DECAYS = {"cifar10": (1e-2, 5e-3, 1e-3), "cifar100": (1e-5, 5e-5, 1e-4)}


@dataclass(frozen=True)
class Row:
    """A row of tables 2 to 5; ``depth`` is N where the row is the authors' own, None for other methods.

    ``accuracy`` before and ``compressed`` after compression, and their difference ``drop``, in per cent; ``flops``
    and ``params`` of the compressed network in millions, ``flops_drop`` and ``params_drop`` in per cent.
    """

    method: str
    depth: int | None
    accuracy: float
    compressed: float
    drop: float
    flops: float
    flops_drop: float
    params: float
    params_drop: float
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows, and the size of the uncompressed network in millions of multiply-adds and of parameters."""

    model: str
    flops: float
    params: float
    rows: tuple[Row, ...]

    def own(self, depth: int) -> tuple[Row, ...]:
        """The authors' rows with this N."""
        return tuple(row for row in self.rows if row.depth == depth)


TABLE_2 = Table(
    "resnet20",
    40.81,
    0.27,
    (
        Row("LoRITa+ISVT", 3, 91.63, 91.00, -0.63, 18.47, 54.7, 0.11, 61.0),
        Row("LoRITa+ISVT", 3, 91.63, 90.54, -1.09, 15.44, 62.3, 0.084, 68.8),
        Row("LoRITa+ISVT", 3, 91.63, 90.17, -1.46, 15.06, 63.2, 0.078, 71.0),
        Row("LoRITa+ISVT", 2, 92.33, 91.64, -0.69, 19.09, 53.22, 0.12, 55.8),
        Row("LoRITa+ISVT", 2, 92.33, 90.27, -2.06, 19.09, 63.61, 0.086, 67.9, "19.09 M are a drop of 53.2 %"),
        Row("Baseline", 1, 92.34, 90.26, -2.08, 17.52, 57.2, 0.096, 64.2),
        Row("Baseline", 1, 92.34, 90.01, -2.33, 16.03, 60.09, 0.094, 64.9, "16.03 M are a drop of 60.7 %"),
        Row("SOKS", None, 92.05, 90.78, -1.27, 15.49, 62.04, 0.14, 48.14),
        Row("SCOP", None, 92.22, 90.75, -1.44, 18.08, 55.7, 0.12, 56.3, "the accuracies differ by 1.47"),
        Row("Hinge", None, 92.54, 91.84, -0.70, 18.57, 54.5, 0.12, 55.45),
        Row("GCNP", None, 92.25, 91.58, -0.67, 20.18, 50.54, 0.17, 38.51),
        Row("ABP", None, 92.15, 91.03, -1.12, 21.34, 47.7, 0.15, 45.1),
        Row("LCNN", None, 91.25, 90.13, -0.12, 13.56, 66.78, 0.093, 65.38, "the accuracies differ by 1.12"),
    ),
)
TABLE_3 = Table(
    "vgg16-bn",
    314.59,
    14.73,
    (
        Row("LoRITa+ISVT", 3, 93.62, 93.07, -0.55, 47.73, 84.8, 0.79, 94.6),
        Row("LoRITa+ISVT", 3, 93.62, 92.58, -1.04, 42.59, 86.43, 0.66, 95.5),
        Row("LoRITa+ISVT", 3, 93.62, 92.19, -1.43, 38.49, 87.74, 0.465, 96.84),
        Row("LoRITa+ISVT", 3, 93.62, 91.21, -2.41, 30.1, 90.41, 0.465, 97.58, "0.465 M are a drop of 96.8 %"),
        Row("LoRITa+ISVT", 2, 94.13, 93.23, -0.90, 50.21, 84.03, 0.94, 93.64),
        Row("LoRITa+ISVT", 2, 94.13, 92.80, -1.33, 40.09, 87.23, 0.664, 95.48),
        Row("LoRITa+ISVT", 2, 94.13, 92.00, -2.13, 36.72, 88.31, 0.514, 96.5),
        Row("Baseline", 1, 93.78, 92.09, -1.69, 57.4, 81.8, 1.16, 92.1),
        Row("Baseline", 1, 93.78, 91.19, -2.59, 42.43, 86.4, 0.935, 93.4, "0.935 M are a drop of 93.7 %"),
        Row("DECORE, setting 1", None, 93.96, 91.68, -2.28, 36.95, 88.25, 0.26, 98.26),
        Row("DECORE, setting 2", None, 93.96, 92.44, -1.22, 51.34, 83.68, 0.5, 96.6, "the accuracies differ by 1.52"),
        Row("PFP", None, 92.89, 92.39, -0.50, 47.09, 85.03, 0.84, 94.32),
        Row("OTO", None, 91.60, 91.00, -0.60, 51.28, 83.7, 0.37, 97.5),
        Row("ABP", None, 93.96, 92.65, -1.31, 52.81, 83.21, 1.5, 89.79),
        Row("EDP", None, 93.60, 93.52, -0.08, 62.57, 80.11, 0.65, 95.59),
        Row("CHIP", None, 93.96, 93.18, -0.78, 67.32, 78.6, 1.87, 87.3),
        Row("DLRFC", None, 93.25, 93.64, -0.39, 72.51, 76.95, 0.83, 94.38, "the accuracy rises by 0.39"),
        Row("HRank", None, 93.96, 91.23, -2.73, 73.9, 76.51, 1.75, 88.12),
        Row("EPruner", None, 93.02, 93.08, 0.06, 74.42, 76.34, 1.65, 88.8),
        Row("CLR-RNF", None, 93.02, 93.32, 0.30, 81.48, 74.1, 0.74, 95.0),
        Row("LCNN", None, 92.78, 92.72, -0.06, 45.71, 85.47, 1.45, 91.14, "1.45 M are a drop of 90.2 %"),
    ),
)
TABLE_4 = Table(
    "resnet18-imagenet",
    1810.0,
    11.69,
    (
        Row("LoRITa+ISVT", 3, 67.82, 66.47, -1.35, 1010.0, 44.2, 6.17, 47.22),
        Row("LoRITa+ISVT", 2, 69.22, 68.14, -1.08, 1080.0, 40.33, 6.67, 42.94),
        Row("SOKS", None, 70.42, 69.16, -1.26, 817.0, 54.95, 6.27, 46.36),
        Row("SCOP", None, 69.76, 69.18, -0.58, 1110.0, 38.8, 7.1, 39.30),
        Row("SCOP", None, 69.76, 68.62, -1.14, 997.0, 45.0, 6.6, 43.5),
        Row("ABP", None, 70.29, 67.83, -2.46, 1021.0, 43.7, 6.31, 46.0),
    ),
)
TABLE_5 = Table(
    "resnet34-imagenet",
    3660.0,
    21.8,
    (
        Row("LoRITa+ISVT", 2, 72.05, 71.91, -0.14, 1920.0, 47.54, 11.31, 48.11),
        Row("SOKS", None, 74.01, 73.52, -0.49, 1612.0, 55.98, 11.27, 48.3),
        Row("SCOP", None, 73.31, 72.62, -0.69, 2021.0, 44.8, 11.86, 45.6),
        Row("SCOP", None, 73.31, 72.93, -0.38, 2231.0, 39.1, 13.15, 39.7),
        Row("ABP", None, 73.86, 72.15, -1.71, 1923.0, 47.5, 10.75, 50.7),
    ),
)
