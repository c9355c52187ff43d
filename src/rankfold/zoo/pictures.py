"""Pictures of any size made alike: resized, cut, as bytes; and read when they are asked for, where all are too many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankfold.zoo.errors import ZooError

# of images divided by 255: what networks with published weights were trained with
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_SIXTEEN = (1 << 16) - 1
_THREADS = 8  # decoding leaves the interpreter's lock


@dataclass(frozen=True)
class Transform:
    """The shorter side to ``resize`` pixels, the middle ``crop`` × ``crop`` of it; ``own``: a user's function instead.

    ``own`` is given a PIL image in RGB, the right way up, and returns a tensor or array, (C, H, W) or, of bytes, (H, W,
    C) too. Pictures of more than bytes (PIL's modes I and F) it is given as they are.
    """

    resize: int = 256
    crop: int = 224
    own: Callable[[Any], Any] | None = None

    def __call__(self, image: Any) -> Tensor:
        image = _upright(image)
        if self.own is not None:
            return _as_pixels(self.own(image if _is_wide(image) else image.convert("RGB")))
        image = _in_bytes(image).convert("RGB")
        width, height = image.size
        scale = self.resize / min(width, height)
        size = max(self.crop, round(width * scale)), max(self.crop, round(height * scale))
        if size != image.size:
            image = image.resize(size, resample=2)  # bilinear, as published weights were evaluated
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        return _as_pixels(np.asarray(image.crop((left, top, left + self.crop, top + self.crop))))


def _upright(image: Any) -> Any:
    """Turned as the camera noted (Exif), which the pixels themselves are not."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _is_wide(image: Any) -> bool:
    """Whether its numbers are more than bytes: ``I;16``, ``I`` and ``F``, of which PIL makes RGB by cutting at 255."""
    return image.mode[0] in "IF"


def _in_bytes(image: Any) -> Any:
    """A grey picture of 16 bits on the scale of bytes, others as they are; ``ZooError`` where no scale is known."""
    if not _is_wide(image):
        return image
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" or not 0 <= values.min() <= values.max() <= _SIXTEEN:
        raise ZooError(
            f"its pixels run from {values.min():g} to {values.max():g}, and nothing tells what white is: give "
            "transform=package.module:function, which is given the picture as it is, or pictures of 8 or 16 bits"
        )
    return Image.fromarray((values / (_SIXTEEN / 255)).round().astype(np.uint8))


def _as_pixels(made: Any) -> Tensor:
    tensor = made if isinstance(made, Tensor) else torch.from_numpy(np.array(made))
    if tensor.dtype == torch.uint8 and tensor.ndim == 2 and not isinstance(made, Tensor):
        tensor = tensor.unsqueeze(0)  # a grey PIL image
    if tensor.dtype == torch.uint8 and tensor.ndim == 3 and tensor.shape[0] not in (1, 3) and tensor.shape[2] in (1, 3):
        tensor = tensor.permute(2, 0, 1)
    if tensor.ndim != 3:
        raise ZooError(
            f"a transform must return (channels, height, width), and returned the shape {tuple(tensor.shape)}"
        )
    return tensor.contiguous()


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures that are decoded when they are indexed, by a number, a slice or numbers (K,): what ``Split`` takes.

    ``open_``: the PIL image of a source. Each look decodes anew, on a few threads. ``ZooError`` for a picture that
    cannot be read, by its name.
    """

    sources: Sequence[Any]
    open_: Callable[[Any], Any]
    transform: Transform
    name: Callable[[Any], str] = str

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if isinstance(index, int):
            return self._decoded(self.sources[index])
        if isinstance(index, Tensor) and index.ndim == 0:
            return self._decoded(self.sources[int(index)])
        chosen = self._chosen(index)
        with ThreadPoolExecutor(min(_THREADS, max(1, len(chosen)))) as pool:
            found = list(pool.map(self._decoded, chosen))
        return torch.stack(found) if found else self._first.new_empty((0, *self._first.shape))

    def part(self, indices: Tensor | Sequence[int]) -> Pictures:
        """Those at ``indices`` (K,), none of them decoded."""
        return replace(self, sources=self._chosen(indices))

    def _chosen(self, index: slice | Tensor | Sequence[int]) -> Sequence[Any]:
        if isinstance(index, slice):
            return self.sources[index]
        return [self.sources[i] for i in torch.arange(len(self))[index].tolist()]

    def _decoded(self, source: Any) -> Tensor:
        try:
            return self.transform(self.open_(source))
        except ZooError as error:
            raise ZooError(f"{self.name(source)}: {error}") from None
        except Exception as error:  # whatever PIL or a user's transform raises, told with the picture's name
            reason = " ".join(str(error).split())
            raise ZooError(f"{self.name(source)} cannot be read: {type(error).__name__}: {reason}") from error

    @cached_property
    def _first(self) -> Tensor:
        return self._decoded(self.sources[0])

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W), as the first one is."""
        return torch.Size((len(self), *self._first.shape))

    @property
    def ndim(self) -> int:
        return 1 + self._first.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype
