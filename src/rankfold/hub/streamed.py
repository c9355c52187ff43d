"""A Hugging Face folder whose weights are read a part at a time, and the folder that becomes of it, shard by shard.

What lies beside the weights (adapters, states of optimizers, weights in other formats) is neither read nor copied.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.hub.declared import check_ours
from rankfold.hub.errors import HubError
from rankfold.hub.folder import check_weights, companions, quietly, skeleton
from rankfold.hub.stored import Stored
from rankfold.hub.whole import check_whole
from rankfold.observe import Pages
from rankfold.run.disk.container import FAULTS, read_object, read_tensors, sizes_in, write_tensors
from rankfold.run.disk.files import digest_of, write_atomically
from rankfold.run.disk.pretrained import CONFIG, config_of, is_factored
from rankfold.run.disk.tensors import INDEX, SINGLE, weight_files
from rankfold.sites import Form, settle_, sites

_FLOATS = ("F64", "F32", "F16", "BF16")
_GENERATION = "generation_config.json"


def paged(directory: str | Path) -> Any:
    """The model of a folder on the meta device, in eval mode, with the pages that its weights are read by
    (``rankfold.observe.Pages``). Of the weights the headers alone are read here. Experts are taken apart.

    Raises ``HubError`` in one line: whatever ``skeleton`` and ``check_weights`` refuse, a tensor that is missing, of
    another shape, or of a type that is no weight as it is, and a folder that is quantised or compressed already.
    """
    directory = Path(directory)
    asked = config_of(directory).get("quantization_config")
    if asked is not None:
        how = "compressed by rankfold" if is_factored(directory) else f"quantised ({_method(asked)})"
        raise HubError(f"{directory}: it is already {how}: give the folder of the original")
    model = skeleton(directory)
    check_weights(directory)
    try:
        weights = Stored(directory, model)
    except ValueError as error:
        raise HubError(str(error)) from None
    names, buffers = _names(directory, model, weights), _buffers(directory, model, weights)
    before = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    settle_(model, [site.name for site in sites(model) if site.layer.experts])
    here = model.named_parameters(remove_duplicate=False)
    after = {name: name if name in names else before[id(parameter)] for name, parameter in here}
    Pages(
        model, {name: names[was] for name, was in after.items()}, weights.read, buffers,
        earlier={name: was for name, was in after.items() if name != was},
    )  # fmt: skip
    return model


def _method(asked: Any) -> str:
    return str(asked.get("quant_method", "?")) if isinstance(asked, Mapping) else "?"


def _names(directory: Path, model: nn.Module, weights: Stored) -> dict[str, str]:
    """For every parameter the name that it has in the files."""
    alike: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        alike.setdefault(id(parameter), []).append(name)
    found: dict[str, str] = {}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for group in alike.values():
        source = next((there for name in group if (there := _stored_as(name, model, weights)) is not None), None)
        if source is None:
            raise HubError(
                f"{directory}: its files hold no {group[0]}: either transformers stores it under another name or "
                "in pieces that cannot be read one by one, then compress the model as a whole, without "
                "--memory; or the folder is incomplete, then download it again"
            )
        try:
            shape, kind = weights.shape(source), weights.kind(source)
        except ValueError as error:
            raise HubError(str(error)) from None
        if shape != tuple(shapes[group[0]]):
            raise HubError(
                f"{directory}: {source} has the shape {shape} there, and {type(model).__name__} needs "
                f"{tuple(shapes[group[0]])}: the weights belong to another model"
            )
        if kind not in _FLOATS:
            raise HubError(
                f"{directory}: {source} is stored as {kind}, as quantisers do: give the original weights, in "
                "float32, bfloat16 or float16"
            )
        found |= dict.fromkeys(group, source)
    return found


def _stored_as(name: str, model: Any, weights: Stored) -> str | None:
    prefix = f"{getattr(model, 'base_model_prefix', '')}."  # files of a body without a head lack it
    return next((each for each in (name, name.removeprefix(prefix), prefix + name) if each in weights), None)


@torch.no_grad()
def _buffers(directory: Path, model: Any, weights: Stored) -> dict[str, Tensor]:
    """The values of all buffers: from the files, or as the model makes them where it is built."""
    meta, found = dict(model.named_buffers()), {}
    state = model.state_dict()
    for path, module in model.named_modules():
        own = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
        made = {name: b for name, b in own.items() if f"{path}.{name}".lstrip(".") not in state}
        for name, buffer in made.items():
            module._buffers[name] = _unset(buffer)
        if made:
            with quietly():
                model._init_weights(module)
        for name, buffer in own.items():
            full = f"{path}.{name}".lstrip(".")
            source = _stored_as(full, model, weights)
            value = weights.read(source) if source is not None else module._buffers[name]
            if name in made and source is None and bool((value == _unset(buffer)).all() | value.isnan().any()):
                raise HubError(
                    f"{directory}: the value of {full} is known only when {type(model).__name__} is built as a "
                    "whole: compress it without --memory"
                )
            found[full] = value.to(buffer.dtype)
    for full, buffer in meta.items():
        place, _, name = full.rpartition(".")
        model.get_submodule(place)._buffers[name] = buffer
    return found


def _unset(buffer: Tensor) -> Tensor:
    value: Any = float("nan") if buffer.is_floating_point() else -1 if buffer.dtype != torch.bool else False
    return torch.full(buffer.shape, value, dtype=buffer.dtype)


def left_alone(directory: Path) -> list[str]:
    """What lies in a folder beside the model, by name: it is not read."""
    weights = {file.name for file in weight_files(directory)}
    used = {CONFIG, _GENERATION, "README.md", ".gitattributes", *companions(directory), *weights}
    used |= set() if SINGLE in weights else {INDEX}
    beside = {name.partition("/")[0] for name in used}
    return sorted(path.name for path in directory.iterdir() if path.name not in beside and path.name[0] != ".")


class Shards:
    """Where the parts of a compressed model go: one file for each span of ``pages`` into ``directory``, and beside it a
    note of what it holds. A tensor that no layer takes the place of is copied as it is in the source folder; of
    tied ones the first."""

    def __init__(self, directory: Path, pages: Pages) -> None:
        self.directory, self.pages = directory, pages
        first: dict[str, str] = {}
        for name, source in pages.names.items():
            first.setdefault(source, name)
        left = set(first.values())
        self.own: list[list[str]] = []
        for part in pages.parts:
            self.own.append(sorted(left & part))
            left -= part
        self.own.append(sorted(left))  # what no span needs

    def file(self, number: int) -> Path:
        return self.directory / f"model-{number + 1:05d}-of-{len(self.own):05d}.safetensors"

    def _note(self, number: int) -> Path:
        return self.directory / f"block-{number:04d}.json"

    def put(self, number: int, tensors: Mapping[str, Tensor], note: Any) -> None:
        changed = {entry["site"] for entry in note["entries"] if entry["form"] != Form.KEEP}
        left = [name for name in self.own[number] if name.rpartition(".")[0] not in changed]
        kept = {self._loaded_as(name, changed): self.pages.read(self.pages.names[name]) for name in left}
        whole = kept | dict(tensors)
        write_tensors(self.file(number), whole)
        known = {"sha256": digest_of(self.file(number)), **note}
        write_atomically(self._note(number), (json.dumps(known, indent=1) + "\n").encode())

    def _loaded_as(self, name: str, changed: Collection[str]) -> str:
        """The name that a tensor has in the model that will be loaded: what was taken apart here is whole there, where
        neither part has changed."""
        earlier = self.pages.earlier.get(name)
        if earlier is None or any(site.startswith(f"{earlier.rpartition('.')[0]}.") for site in changed):
            return name
        return earlier

    def ready(self, number: int) -> tuple[Mapping[str, Tensor], Any] | None:
        try:
            note = read_object(self._note(number), "a note of a block", "it is made again")
            whole = digest_of(self.file(number)) == note["sha256"]
            return (read_tensors(self.file(number)), note) if whole else None
        except (OSError, *FAULTS):
            return None

    def close(self, small: Any) -> tuple[dict[str, bytes], dict[str, str]]:
        """Once every block is there: the other files of the folder by name, and the hashes of the shards, which stay
        where they are. ``small``: the compressed model on the meta device, which knows its configuration."""
        check_ours(small)
        quantizer = getattr(small, "hf_quantizer", None)
        poison = "" if quantizer is None else quantizer.quantization_config.poison
        last = len(self.own) - 1
        beside = {
            name: self.pages.buffers[name] for name in self.pages.network.state_dict() if name in self.pages.buffers
        }
        if poison:
            beside[poison] = torch.empty(0, dtype=small.dtype)
        if beside or self.own[last]:
            self.put(last, beside, {"entries": []})
        notes = [
            (self.file(number).name, read_object(self._note(number), "a note of a block", "start again"))
            for number in range(len(self.own))
            if self._note(number).exists()
        ]
        sizes = {file: sizes_in(self.directory / file) for file, _ in notes}
        places = {name: file for file, own in sizes.items() for name in own}
        total = sum(sum(own.values()) for own in sizes.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        files = {INDEX: (json.dumps(index, indent=2) + "\n").encode()} | _configuration(small)
        if quantizer is not None:
            self._check(type(small), files, [file for file, _ in notes])
        return files, {file: note["sha256"] for file, note in notes}

    def _check(self, kind: Any, files: Mapping[str, bytes], shards: Collection[str]) -> None:
        """The folder as it will be, read back."""
        with tempfile.TemporaryDirectory(prefix="rankfold-") as place:
            for name, data in files.items():
                (Path(place) / name).write_bytes(data)
            for name in shards:
                (Path(place) / name).symlink_to((self.directory / name).resolve())
            check_whole(place, kind)


def _configuration(small: Any) -> dict[str, bytes]:
    """The files that say what to build and how to generate, as ``save_pretrained`` writes them."""
    small.config.dtype = str(small.dtype).removeprefix("torch.")
    small.config.architectures = [type(small).__name__]
    with tempfile.TemporaryDirectory(prefix="rankfold-") as place, quietly():
        small.config.save_pretrained(place)
        if small.can_generate():
            small.generation_config.save_pretrained(place)
        return {file.name: file.read_bytes() for file in sorted(Path(place).iterdir())}
