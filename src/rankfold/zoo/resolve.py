"""From what a user types, a built-in name, `package.module:factory` or `folder/file.py:factory`, to an object."""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import tensors_in
from rankfold.linalg.brief import brief
from rankfold.zoo import models
from rankfold.zoo.errors import ZooError
from rankfold.zoo.pretrained import is_pretrained_name, open_pretrained


@dataclass(frozen=True, eq=False)
class Resolved:
    """A model; `example_input` (a tensor, or a tuple or dict of arguments; None: take one from data), `data` (None:
    unknown)."""

    spec: str
    model: nn.Module
    example_input: Any
    data: str | None

    __repr__ = brief


def resolve(
    spec: str,
    *,
    classes: int | None = None,
    in_channels: int | None = None,
    generator: torch.Generator | None = None,
    download: bool = False,
) -> Resolved:
    """The model that `spec` names: a built-in name, a folder of transformers, or `package.module:factory`, where a
    Python file may stand for its module.

    OWNER/NAME is a model of the Hugging Face hub, taken from its cache, and fetched only with `download`.

    The factory is called without arguments and returns an nn.Module; its Python module may lie in the current
    directory. An attribute `example_input` (a tensor, a tuple of positional arguments or a dict of keyword
    arguments) of the model or of the factory is taken over. `classes`, `in_channels` and `generator` concern built-in
    names alone.
    Raises ZooError, one sentence: unknown name, module not found, attribute missing, factory raised, result
    not an nn.Module.
    """
    if is_pretrained_name(spec):
        network, example = open_pretrained(spec, download=download)
        return Resolved(spec, network, example, None)
    if ":" not in spec:
        network = models.model(spec, classes=classes, in_channels=in_channels, generator=generator)
        example = models.example_input(spec, in_channels=in_channels)
        return Resolved(spec, network, example, models.default_data(spec) if models.has_data(spec) else None)
    network, factory = call_factory(spec)
    if not isinstance(network, nn.Module):
        raise ZooError(f"{spec}: the factory must return an nn.Module, and returned a {type(network).__name__}")
    return Resolved(spec, network, _example_input(spec, network, factory), None)


def call_factory(spec: str) -> tuple[Any, Any]:
    """Import `package.module`, call `factory()`, return (result, factory); ZooError where any of it fails."""
    factory = imported(spec)
    if not callable(factory):
        attribute = spec.partition(":")[2]
        raise ZooError(
            f"{spec}: {attribute!r} is a {type(factory).__name__}, which cannot be called: name a function or class"
        )
    with _current_directory_importable():
        try:
            return factory(), factory
        except Exception as error:  # whatever a user's function raises, told with its spec
            raise ZooError(f"{spec}: the factory raised {_one_line(error)}") from error


def imported(spec: str) -> Any:
    """What `package.module:attribute` names; ZooError where it cannot be imported."""
    module_name, _, attribute = spec.rpartition(":")
    if not module_name or not attribute or (":" in module_name and not module_name.endswith(_FILE)):
        raise ZooError(f"{spec!r} does not have the form package.module:factory, or file.py:factory")
    with _current_directory_importable():
        factory: Any = _of_file(spec, Path(module_name)) if module_name.endswith(_FILE) else _import(spec, module_name)
        for part in attribute.split("."):
            if not hasattr(factory, part):
                raise ZooError(_no_attribute(spec, module_name, attribute, part, factory))
            factory = getattr(factory, part)
    return factory


def _no_attribute(spec: str, module_name: str, attribute: str, part: str, owner: Any) -> str:
    """The sentence, with near names, and, where a file here has the same name, which one was imported instead."""
    near = difflib.get_close_matches(part, [name for name in dir(owner) if callable(getattr(owner, name, None))])
    said = f"{spec}: module {module_name} has no attribute {attribute!r}"
    if near:
        said += f"; did you mean {' or '.join(near)}?"
    imported = getattr(sys.modules.get(module_name), "__file__", None)
    here = Path(*module_name.split(".")).with_suffix(".py")
    if here.exists() and (imported is None or not here.samefile(imported)):
        said += (
            f"; {imported or 'a module built into Python'} was imported instead of {here} in this directory: rename "
            "your file"
        )
    return said


_FILE = ".py"


def _of_file(spec: str, file: Path) -> Any:
    """The module that a file is: by its own name where that leads to it, else beside whatever else is called so."""
    if not file.is_file():
        raise ZooError(f"{spec}: there is no file {file}")
    folder = str(file.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # for the files beside it, also those that it imports later
    with suppress(ImportError, ValueError):
        found = importlib.util.find_spec(file.stem)
        if found is not None and found.origin is not None and file.samefile(found.origin):
            return _import(spec, file.stem)
    name = f"{file.stem}_file"
    known = sys.modules.get(name)
    if known is not None and file.samefile(str(known.__file__)):
        return known
    made: Any = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(made)
    try:
        made.loader.exec_module(module)
    except Exception as error:  # whatever a user's module raises while it is imported
        del sys.modules[name]
        raise ZooError(f"{spec}: importing {file} failed: {_one_line(error)}") from error
    return module


def _import(spec: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ZooError(
                f"{spec}: there is no module {error.name}, neither installed nor in the current directory"
            ) from error
        raise ZooError(f"{spec}: importing {module_name} failed: {_one_line(error)}") from error
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ZooError(f"{spec}: importing {module_name} failed: {_one_line(error)}") from error


def _example_input(spec: str, network: nn.Module, factory: Any) -> Any:
    for owner in (network, factory):
        example = getattr(owner, "example_input", None)
        if example is None:
            continue
        if not isinstance(example, Tensor | tuple | Mapping) or not any(True for _ in tensors_in(example)):
            kind = type(example).__name__
            raise ZooError(f"{spec}: example_input must be a tensor, or a tuple or dict of tensors, and is a {kind}")
        return example
    return None


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    present = "" in sys.path or here in sys.path
    if not present:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if not present and here in sys.path:
            sys.path.remove(here)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
