"""The networks of ``--quick``: each paper's kind of network in a size that digits of 8×8 train in a second."""

from rankfold.zoo.fcn import FCN
from rankfold.zoo.vit import ViT

DATA = "digits"
CNN = "digits-cnn"
FULLY_CONNECTED, TRANSFORMER = f"{__name__}:fcn", f"{__name__}:vit"


def fcn() -> FCN:
    """Four matrices of width 24 on 64 pixels."""
    return FCN(64, 10, depth=4, width=24)


def vit() -> ViT:
    """Two blocks of two heads and width 32 on patches of 2×2."""
    return ViT(2, 2, classes=10, in_channels=1, image=8, patch=2, width=32)
