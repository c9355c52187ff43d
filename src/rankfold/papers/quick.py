"""The networks of ``--quick``: each paper's kind of network in a size that digits of 8×8 train in a second."""

from torch import nn

from rankfold.zoo.networks.fcn import FCN
from rankfold.zoo.networks.vit import ViT

DATA = "digits"
FULLY_CONNECTED, CONVOLUTIONAL, TRANSFORMER = (f"{__name__}:{kind}" for kind in ("fcn", "cnn", "vit"))


def fcn() -> FCN:
    """Four matrices of width 24 on 64 pixels."""
    return FCN(64, 10, depth=4, width=24)


def cnn() -> nn.Sequential:
    """Three convolutions, each with BatchNorm, and two fully connected layers."""
    layers: list[nn.Module] = []
    for channels_in, channels, pool in ((1, 8, 1), (8, 16, 2), (16, 32, 2)):
        layers += [nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.MaxPool2d(pool)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 2 * 2, 32), nn.ReLU(), nn.Linear(32, 10))


def vit() -> ViT:
    """Two blocks of two heads and width 16 on patches of 2×2."""
    return ViT(2, 2, classes=10, in_channels=1, image=8, patch=2, width=16)
