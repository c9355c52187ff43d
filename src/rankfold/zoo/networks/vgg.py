"""VGG with batch normalisation for 32×32 images (Simonyan and Zisserman 2015, columns B and D)."""

from torch import Tensor, nn

VGG13 = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """(N, in_channels, 32, 32) → (N, classes): stages of 3×3 convolutions, each ended by a 2×2 maximum.

    The convolutions carry a bias, which makes VGG16 the 14.73 M parameters of the LoRITa and LCNN papers.
    """

    def __init__(self, stages: tuple[tuple[int, ...], ...], classes: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n = in_channels
        for stage in stages:
            for m in stage:
                layers += [nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU()]
                n = m
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(n, classes)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
