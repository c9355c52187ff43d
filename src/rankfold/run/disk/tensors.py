"""Weights on the disk or in memory by name, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rankfold.run.disk.container import FAULTS, read_object, said

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Checkpoint:
    """The tensors of a model by name. ``title``: how messages call it."""

    def __init__(self, source: str | Path | nn.Module | Mapping[str, Tensor]) -> None:
        """``source``: a folder with ``model.safetensors``, in parts too, a safetensors file, a module, or its state.

        Of files the headers alone are read. Raises ``ValueError`` in one line for what is damaged or no such thing.
        """
        self._files: dict[str, Path] = {}
        self._held: Mapping[str, Tensor] = {}
        if isinstance(source, nn.Module):
            self.title, self._held = type(source).__name__, source.state_dict()
        elif isinstance(source, Mapping):
            self.title, self._held = "a state dict", source
        else:
            self.title = str(source)
            for file in _files(Path(source)):
                self._files |= dict.fromkeys(names_in(file), file)

    def __contains__(self, name: str) -> bool:
        return name in self._files or name in self._held

    @property
    def names(self) -> list[str]:
        return [*self._files, *self._held]

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._held:
            return tuple(self._held[name].shape)
        with safe_open(self._files[name], "pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        """How the file calls the type of a tensor: F32, BF16, I8, …"""
        if name in self._held:
            return str(self._held[name].dtype)
        with safe_open(self._files[name], "pt") as opened:
            return str(opened.get_slice(name).get_dtype())

    def read(self, name: str) -> Tensor:
        """One tensor, detached. A file is mapped for this tensor alone, so that memory holds no other."""
        if name in self._held:
            return self._held[name].detach()
        try:
            with safe_open(self._files[name], "pt") as opened:
                return opened.get_tensor(name)
        except FAULTS as error:
            raise ValueError(f"{self._files[name]}: {name} cannot be read ({said(error)}): download it again") from None


def _files(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix != ".safetensors":
            raise ValueError(
                f"{source}: only safetensors can be read one tensor at a time: convert the file once with "
                f"safetensors.torch.save_file(torch.load({str(source)!r}, weights_only=True), FILE)"
            )
        return [source]
    if files := weight_files(source):
        return files
    raise ValueError(
        f"{source}: there is no {SINGLE} in it: give a folder with weights in safetensors, or such a file"
        if source.exists()
        else f"{source}: there is no such file or folder"
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a folder, whether they are there or not: as transformers looks for them, the
    single one, and only without it the parts that an index names. Empty where there is neither; ``ValueError`` in one
    line for a damaged index."""
    if (folder / SINGLE).is_file():  # an index beside it is left from an earlier save, in parts
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        shards = read_object(index, "an index of shards", "download or save the model again")["weight_map"]
        names = sorted(set(shards.values()))
        inside = all(Path(name).name == name for name in names)
    except FAULTS as error:
        raise ValueError(f"{index}: damaged ({said(error)}): download or save the model again") from None
    if not inside:
        raise ValueError(f"{index}: damaged (it names files outside its folder): download or save the model again")
    return [folder / name for name in names]


def names_in(file: Path) -> list[str]:
    """Of the tensors in a safetensors file; ``ValueError`` in one line for what is damaged."""
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (OSError, *FAULTS) as error:
        raise ValueError(f"{file}: damaged, or not safetensors ({said(error)}): download or save it again") from None


def is_weights(dtype: torch.dtype) -> bool:
    """Whether tensors of this type are weights as they are: floating, and not the numbers of a quantiser."""
    return dtype.is_floating_point and dtype.itemsize > 1
