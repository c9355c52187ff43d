"""Residual networks: He et al. 2016, section 4.2 (depth 6n + 2) and ResNet18 for 32×32 images; ResNet18 and 34 of
table 1 for ImageNet."""

import torch.nn.functional as F
from torch import Tensor, nn


class Subsample(nn.Module):
    """Option-A shortcut, free of parameters: every second pixel, zeros as new channels on both sides."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two batch-normalised 3×3 convolutions plus the shortcut: (N, C, H, W) → (N, C', H/s, W/s)."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """(N, in_channels, 32, 32) → (N, classes): stages of 16, 32, 64 channels of `blocks` basic blocks.

    Option-A shortcuts. The parameter names are those of the widely used published weights (`conv1`,
    `layer1.0.conv1`, …, `linear`).
    """

    def __init__(self, blocks: int, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)
        he_initialization_(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        shortcut = nn.Identity() if stride == 1 else Subsample(channels - in_channels)
        first = BasicBlock(in_channels, channels, stride, shortcut)
        rest = (BasicBlock(channels, channels, 1, nn.Identity()) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNet18(nn.Module):
    """(N, in_channels, 32, 32) → (N, classes): stages of 64, 128, 256, 512 channels, two basic blocks each.

    The CIFAR form: a 3×3 stem of stride 1 without pooling; 1×1 convolution shortcuts where the shape changes.
    """

    def __init__(self, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, stride=1)
        self.layer2 = self._stage(64, 128, stride=2)
        self.layer3 = self._stage(128, 256, stride=2)
        self.layer4 = self._stage(256, 512, stride=2)
        self.linear = nn.Linear(512, classes)
        he_initialization_(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        shortcut: nn.Module = nn.Sequential()
        if stride != 1:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))
        first = BasicBlock(in_channels, channels, stride, shortcut)
        return nn.Sequential(first, BasicBlock(channels, channels, 1, nn.Sequential()))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DownsampledBlock(nn.Module):
    """A ``BasicBlock`` whose shortcut is called `downsample`, as in published files of weights."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class ImageNetResNet(nn.Module):
    """(N, in_channels, H, W) → (N, classes): a 7×7 stem of stride 2 with a 3×3 maximum, `blocks` of 64 to 512 channels.

    Parameters are called as in the files that torchvision publishes (`conv1`, `layer2.0.downsample.0`, …, `fc`), which
    `load_weights` therefore reads as they are.
    """

    def __init__(self, blocks: tuple[int, int, int, int], classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = (64, 64, 128, 256, 512)
        stages = [
            self._stage(n, m, count, stride=1 if n == m else 2)
            for n, m, count in zip(channels, channels[1:], blocks, strict=False)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(512, classes)
        he_initialization_(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
        first = DownsampledBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(DownsampledBlock(channels, channels, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def he_initialization_(model: nn.Module) -> None:
    """Draw every convolution and linear weight from N(0, 2/fan_in) (He et al. 2015, equation 10)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
