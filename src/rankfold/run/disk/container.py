"""One container of tensors with a note: a safetensors file whose metadata hold JSON, checked when it is read.

A file may be damaged, foreign or forged. Whatever is wrong with it, reading says so in one line that names the file,
what it was to be, and the remedy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor
from typing_extensions import Buffer

from rankfold.run.disk.files import replacing

N = TypeVar("N")
T = TypeVar("T")

_HASH = "rankfold.sha256"
# what reading foreign content may raise, whatever it is made of
FAULTS = (
    SafetensorError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError,
    RecursionError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Kind(Generic[N]):
    """A kind of file: ``key`` of its note in the metadata, the ``note``'s type, and in words what it is and what helps.

    With the ``key`` "" the metadata themselves, names and texts, are the note.

    ``note`` is any type that pydantic validates: a ``TypedDict``, a dataclass, ``dict[str, str]``. JSON types are taken
    as they are, without conversion. ``remedy``: what to do about a file that cannot be read.
    """

    key: str
    note: Any
    what: str
    remedy: str

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.note)

    def write(self, tensors: Mapping[str, Tensor], note: N, **more: str) -> bytes:
        """The bytes of a file; the same tensors and note give the same bytes. ``more``: further metadata, as text.

        A file whose note has a key holds its own hash, by which ``read`` notices any change. Tensors come to the CPU,
        contiguous; two that share memory are written twice.
        """
        return b"".join(self._pieces(tensors, note, more))

    def write_to(self, file: Path, tensors: Mapping[str, Tensor], note: N) -> None:
        """The same as a file, whole or not at all, of which no more than a tensor is copied in memory. ``OSError``."""
        with replacing(file) as place, place.open("wb") as opened:
            opened.writelines(self._pieces(tensors, note, {}))

    def _pieces(self, tensors: Mapping[str, Tensor], note: N, more: Mapping[str, str]) -> Iterator[Buffer]:
        entries, known = _entries(tensors), dict(more)
        if not self.key:
            return _in_pieces(tensors, dict(cast(Mapping[str, str], note)) | known, entries)
        known[self.key] = json.dumps(note)
        found = hashlib.sha256()
        for piece in _in_pieces(tensors, known, entries):
            found.update(piece)
        return _in_pieces(tensors, known | {_HASH: found.hexdigest()}, entries)

    def read(self, source: str | Path | bytes, build: Callable[[dict[str, Tensor], N], T], name: str = "") -> T:
        """``build(tensors, note)`` of a file, or of its bytes, which ``name`` then names in errors.

        Raises ``ValueError`` for whatever is wrong with the file, or with what ``build`` finds in it; ``OSError`` where
        there is no file. Cost: the file is in memory twice while it is read.
        """
        file = name or ("" if isinstance(source, bytes) else str(source))
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        try:
            _check_signed(data)
            return build(_numbers(load(data)), self._noted(metadata(data)))
        except FAULTS as error:
            where = f"{file}: " if file else ""
            raise ValueError(f"{where}damaged, or not {self.what} ({said(error)}): {self.remedy}") from None

    def _noted(self, found: Mapping[str, str]) -> N:
        if not self.key:
            return self._adapter.validate_python(dict(found), strict=True)
        if self.key not in found:
            raise ValueError(f"no {self.key} in its header")
        return self._adapter.validate_json(found[self.key], strict=True)


def _numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, with which one can reckon; ``ValueError`` for truth values, which no kind of file holds."""
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool:
            raise ValueError(f"{name} holds truth values where there should be numbers")
    return tensors


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file; the same content gives the same bytes, whatever the order of ``metadata``, which safetensors
    itself draws anew each time."""
    return b"".join(_in_pieces(tensors, metadata or {}, _entries(tensors)))


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the header of a file says of its tensors. safetensors knows their order and the names of their types, and
    needs no values for it: it would copy them all."""
    data = save({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()})
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin = 0
    for name, entry in header.items():
        end = begin + tensors[name].numel() * tensors[name].element_size()
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        begin = end
    return header


def _in_pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], entries: Mapping[str, Any]
) -> Iterator[Buffer]:
    """A file from its beginning to its end, made as it is asked for."""
    yield _header(metadata, entries)
    for name in entries:
        yield tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _header(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> bytes:
    """What a file begins with: the length of the header, and the header."""
    everything = ({"__metadata__": dict(sorted(metadata.items()))} if metadata else {}) | dict(tensors)
    text = json.dumps(everything, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_signed(data: bytes) -> None:
    """``ValueError`` where a file holds a hash that is not its own; those of the first release hold none."""
    known = metadata(data)
    if _HASH not in known:
        return
    size = int.from_bytes(data[:8], "little")
    header = parsed(data[8 : 8 + size])
    del header["__metadata__"]
    found = hashlib.sha256(_header({key: value for key, value in known.items() if key != _HASH}, header))
    found.update(memoryview(data)[8 + size :])
    if found.hexdigest() != known[_HASH]:
        raise ValueError("its sha256 is not the one that it holds: it was changed since it was written")


def _plain(tensor: Tensor) -> Tensor:
    return torch.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], settled: bool = True) -> None:
    """A safetensors file of plain tensors, as other libraries write it, whole or not at all; no more than one copy of
    them is in memory. ``settled``: see ``replacing``."""
    own: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        shared = memory.data_ptr() in taken or memory.nbytes() != tensor.numel() * tensor.element_size()
        taken.add(memory.data_ptr())
        own[name] = _plain(tensor) if shared or not tensor.is_contiguous() else tensor.detach()
    with replacing(file, settled) as place:
        save_file(own, place, {"format": "pt"})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of anybody, by name. Raises one of ``FAULTS``, or ``OSError``."""
    return load_file(file)


def sizes_in(file: Path) -> dict[str, int]:
    """The bytes of every tensor of a safetensors file, by name; its header alone is read."""
    with file.open("rb") as opened:
        header = parsed(opened.read(int.from_bytes(opened.read(8), "little")))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file. Raises ``ValueError`` for any other file."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size:
        raise ValueError("cut short")
    header = parsed(data[8 : 8 + size])
    found = header.get("__metadata__") if isinstance(header, dict) else None
    return {str(key): value for key, value in (found or {}).items() if isinstance(value, str)}


def parsed(text: str | bytes) -> Any:
    """The value of JSON; ``ValueError`` for anything else, however deep or long it is."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested deeper than anything that rankfold writes") from None


def read_object(file: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in ``file``. ``ValueError`` in one line for anything else in it, ``OSError`` for no file."""
    try:
        values = parsed(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: damaged, or not {what} ({said(error)}): {remedy}") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"{file}: this is not {what}: a JSON object was expected, and it holds a {type(values).__name__}: {remedy}"
        )
    return values


def checked(kind: Any, values: Any) -> Any:
    """``values`` as the type ``kind`` (a dataclass, say), every field of its type; ``ValueError`` in one line."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(said(error)) from None


def said(error: BaseException) -> str:
    """An error about content in one short line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"][:4]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    if isinstance(error, KeyError):
        return f"{str(error.args[0])[:80]} is missing" if error.args else "an entry is missing"
    if isinstance(error, RecursionError):
        return "nested deeper than anything that rankfold writes"
    return " ".join(str(error).split())[:200] or type(error).__name__
