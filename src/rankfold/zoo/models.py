"""The built-in models by name: the networks of the papers and a small one for the bundled digits."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rankfold.zoo.errors import ZooError
from rankfold.zoo.networks.digits_cnn import DigitsCNN
from rankfold.zoo.networks.fcn import FCN
from rankfold.zoo.networks.resnet import CifarResNet, ImageNetResNet, ResNet18
from rankfold.zoo.networks.vgg import VGG, VGG13, VGG16
from rankfold.zoo.networks.vit import ViT


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., nn.Module]  # called with classes=, in_channels=
    data: str  # "": the data have no name here, they are a folder of the user's
    image: tuple[int, int, int]  # channels, height, width
    classes: int = 10


def _fcn(depth: int, batch_norm: bool, classes: int, in_channels: int) -> FCN:
    return FCN(in_channels * 28 * 28, classes, depth, batch_norm=batch_norm)


_CIFAR = (3, 32, 32)
_MODELS = (
    {"digits-cnn": _Entry(DigitsCNN, "digits", (1, 8, 8))}
    | {f"fcn-{depth}": _Entry(partial(_fcn, depth, True), "mnist", (1, 28, 28)) for depth in (6, 8, 10)}
    | {f"fcn-{depth}-plain": _Entry(partial(_fcn, depth, False), "mnist", (1, 28, 28)) for depth in (6, 8, 10)}
    | {f"resnet{6 * n + 2}": _Entry(partial(CifarResNet, n), "cifar10", _CIFAR) for n in (3, 5, 7, 9)}
    | {"resnet18": _Entry(ResNet18, "cifar10", _CIFAR)}
    | {
        f"resnet{depth}-imagenet": _Entry(partial(ImageNetResNet, blocks), "", (3, 224, 224), 1000)
        for depth, blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)))
    }
    | {"vgg13-bn": _Entry(partial(VGG, VGG13), "cifar10", _CIFAR)}
    | {"vgg16-bn": _Entry(partial(VGG, VGG16), "cifar10", _CIFAR)}
    | {
        f"vit-l{depth}-h{heads}": _Entry(partial(ViT, depth, heads), "cifar10", _CIFAR)
        for depth in (4, 8, 16)
        for heads in (1, 4, 8)
    }
)


_GIVEN = "package.module:factory, or as a folder of transformers"


def model_names() -> tuple[str, ...]:
    """Every name that `model` knows."""
    return tuple(_MODELS)


def model(
    name: str,
    *,
    classes: int | None = None,
    in_channels: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A built-in network in training mode with freshly drawn weights.

    The global random state is left as found.

    Args:
        name: of a network; ``rankfold.zoo.model_names()`` lists them.
        classes: by default those of the network's data set.
        in_channels: likewise.
        generator: of the initial weights; None: seed 0.

    Returns:
        The network.

    Raises:
        ZooError: an unknown name, or a size below one.

    Example:
        >>> sum(p.numel() for p in rf.zoo.model("digits-cnn").parameters())
        82282
    """
    entry = _entry(name)
    classes = entry.classes if classes is None else classes
    in_channels = entry.image[0] if in_channels is None else in_channels
    for what, value in (("classes", classes), ("in_channels", in_channels)):
        if value < 1:
            raise ZooError(f"model {name!r}: {what} must be at least 1, got {value}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    # The layers' constructors draw their weights from the global CPU generator and take no other.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return entry.build(classes=classes, in_channels=in_channels)


def example_input(name: str, *, in_channels: int | None = None) -> Tensor:
    """A float32 batch of one zero image, (1, C, H, W), of the size that the built-in model takes."""
    channels, height, width = _entry(name).image
    return torch.zeros(1, channels if in_channels is None else in_channels, height, width)


def default_data(name: str) -> str:
    """Name of the data set for which the built-in model was made; ZooError where it has none here (ImageNet)."""
    entry = _entry(name)
    if not entry.data:
        raise ZooError(f"{name}: no package holds its data: give them with --data, as imagefolder:DIR or parquet:DIR")
    return entry.data


def has_data(name: str) -> bool:
    """Whether ``default_data`` names the data set of the built-in model."""
    return bool(_entry(name).data)


def _entry(name: str) -> _Entry:
    if name not in _MODELS:
        raise ZooError(no_such(name))
    return _MODELS[name]


def no_such(name: str) -> str:
    """The sentence on a name that is no model, with one that is near."""
    place = Path(name)
    if name and (place / "config.yaml").is_file() and (place / "model.safetensors").is_file():
        return (
            f"{name}: this is a run of rankfold train: give the network that it was made from, with --weights "
            f"{place / 'model.safetensors'}"
        )
    if name and place.is_dir():
        inside = sorted(file.parent.name for file in place.glob("*/config.json"))
        said = f": {', '.join(inside[:3])} in it {'has' if len(inside) == 1 else 'have'} one" if inside else ""
        return f"{name}: this folder is not one of transformers: it has no config.json{said}"
    if name.startswith((".", "/", "~")) and not place.exists():
        return f"{name}: there is no such folder"
    if place.is_file():
        return f"{name}: this is a file, and a network is given as {_GIVEN}; its weights with --weights FILE"
    near = get_close_matches(name, (*_MODELS, *(each.name for each in Path().iterdir() if each.is_dir())), 1)
    return (
        f"there is no model {name!r}: {f'did you mean {near[0]}? There' if near else 'there'} is neither a built-in "
        f"network nor a file or folder of that name. The built-in ones are {', '.join(_MODELS)}; your own is given as "
        f"{_GIVEN}"
    )
