"""Weights from a file into a model, all or nothing, without ever running code from the file."""

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankfold.run.disk.container import FAULTS, read_tensors
from rankfold.train.weights import is_weight
from rankfold.zoo.errors import ZooError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIX = "module."  # DataParallel, DistributedDataParallel
_COMPILED = "_orig_mod."  # torch.compile; may stand before any submodule
# What torch's restricted unpickler and the zip and safetensors readers raise on damaged bytes.
_DAMAGED = (*FAULTS, EOFError, AssertionError, struct.error)


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Copy the weights of ``file`` into ``model``: every parameter and buffer, or an error and nothing copied.

    A state dict inside {"state_dict": …}, {"model": …} or {"model_state_dict": …} is unwrapped; the prefixes of
    DataParallel and torch.compile are ignored on both sides. Batch-norm counters may be missing, as in files of early
    torch versions, and all but one name of tied weights, as safetensors writes them; what is tied in the model must be
    equal in the file. Extra state of modules may be missing too. Values are converted to the model's dtype and device.

    Args:
        model: changed in place.
        file: .safetensors, or a torch file, which is read with ``weights_only=True`` alone: one that needs more is
            refused.

    Raises:
        ZooError: one line, when the file cannot be read or does not fit.

    Example:
        >>> from safetensors.torch import save_file
        >>> save_file(nn.Linear(2, 2).state_dict(), "weights.safetensors")
        >>> rf.zoo.load_weights(nn.Linear(2, 2), "weights.safetensors")
    """
    file = Path(file)
    state = _bare_names(_read(file))
    every = _bare_names(model.state_dict(keep_vars=True))
    original_name = dict(zip(every, model.state_dict(), strict=True))
    slots = {name: slot for name, slot in every.items() if is_weight(name, slot)}
    given = {name: value for name, value in state.items() if name in slots or name not in every}
    _check_fit(file, given, slots)
    _check_tied(file, given, slots)
    model.load_state_dict({original_name[name]: value for name, value in state.items()}, strict=False)


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ZooError(f"weights: there is no file {file}" if not file.exists() else f"weights: {file} is not a file")
    if _is_half_a_zip(file):
        raise ZooError(f"weights: {file} is damaged or cut short: it begins like a torch file, and its end is missing")
    try:
        if file.suffix == ".safetensors":
            return read_tensors(file)
        with warnings.catch_warnings():
            # Its remarks on how a file was written add nothing to the checks that follow.
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))  # the rest of torch's text is advice that would run the code
        held = f"it holds {foreign[1]} beside tensors" if foreign else "it is damaged, or holds no tensors"
        raise ZooError(
            f"weights: {file} is refused, as {held}, and loading it could run code: save model.state_dict() alone"
        ) from error
    except OSError as error:
        raise ZooError(f"weights: {file} cannot be read: {_first_line(error)}") from error
    except _DAMAGED as error:
        raise ZooError(
            f"weights: {file} is damaged or cut short, or neither safetensors nor a torch file: {_first_line(error)}"
        ) from error
    return _state_dict(file, content)


def _is_half_a_zip(file: Path) -> bool:
    """Torch takes such a file for one of its early formats, and speaks of code in it."""
    try:
        with file.open("rb") as opened:
            return opened.read(4) == b"PK\x03\x04" and not is_zipfile(file)
    except BadZipFile:
        return True
    except OSError:
        return False  # said where it is read


def _state_dict(file: Path, content: object) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ZooError(
            f"weights: {file} holds a {type(content).__name__} and not a state dict: save model.state_dict()"
        )
    quantized = [key for key, value in content.items() if "_packed_params" in str(key) or _is_quantized(value)]
    if quantized:
        raise ZooError(f"weights: {file} holds quantized weights ({quantized[0]}): give those from before quantization")
    foreign = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if foreign:
        raise ZooError(
            f"weights: {file} is not a state dict: {len(foreign)} of its {len(content)} entries are not named "
            f"tensors, the first of them {foreign[0]!r}"
        )
    return dict(content)


def _bare_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers put before names; `module.`, possibly a layer's own name, only where all have it."""
    named = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    while named and all(name.startswith(_WRAPPER_PREFIX) for name in named):
        named = {name.removeprefix(_WRAPPER_PREFIX): value for name, value in named.items()}
    return named


def _check_fit(file: Path, state: Mapping[str, Tensor], slots: Mapping[str, Tensor]) -> None:
    meta = [name for name, slot in slots.items() if slot.is_meta]
    if meta:
        raise ZooError(
            f"weights: {meta[0]!r} of the model is on the meta device, without values: give it memory first "
            "(model.to_empty(device='cpu'))"
        )
    given = {id(slots[name]) for name in state if name in slots}  # of tied weights a file may have one name
    missing = [
        name
        for name, slot in slots.items()
        if name not in state and id(slot) not in given and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in slots]
    misshapen = [
        f"{name} is {_shape(state[name])} in the file and {_shape(slot)} in the model"
        for name, slot in slots.items()
        if name in state and not is_lazy(slot) and state[name].shape != slot.shape
    ]
    whole = [name for name, slot in slots.items() if name in state and _lost(state[name], slot)]
    if whole:
        kinds = str(state[whole[0]].dtype).removeprefix("torch."), str(slots[whole[0]].dtype).removeprefix("torch.")
        raise ZooError(
            f"weights: {file} holds {whole[0]} in {kinds[0]}, and the model computes in {kinds[1]}: these are "
            "quantized weights without their scales; give those from before quantization"
        )
    faults = [
        _listed(f"{len(names)} {what}", names)
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise ZooError(f"weights: {file} does not fit the model: {'; '.join(faults)}")


def _check_tied(file: Path, state: Mapping[str, Tensor], slots: Mapping[str, Tensor]) -> None:
    """The last of several names would decide for all of them."""
    first: dict[int, str] = {}
    for name in (name for name in slots if name in state):
        other, slot = first.setdefault(id(slots[name]), name), slots[name]
        if not torch.equal(_bits(state[other], slot.dtype), _bits(state[name], slot.dtype)):
            raise ZooError(
                f"weights: {other} and {name} are one in the model and differ in {file}: give each its own first, with "
                "rankfold.untie_(model), or weights that are tied too"
            )


def _bits(value: Tensor, dtype: torch.dtype) -> Tensor:
    """By which NaN is itself."""
    return value.to(dtype).reshape(-1).contiguous().view(torch.uint8)


def _is_quantized(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_quantized


def _lost(given: Tensor, slot: Tensor) -> bool:
    """Whether whole numbers would be taken for weights."""
    return slot.is_floating_point() and not given.is_floating_point() and given.dim() > 1


def _listed(what: str, names: list[str], at_most: int = 3) -> str:
    return f"{what}: {', '.join(names[:at_most])}{', …' if len(names) > at_most else ''}"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
