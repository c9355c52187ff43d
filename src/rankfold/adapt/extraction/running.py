"""A model with the weights of a source, which can be called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from rankfold.adapt.extraction.named import Named
from rankfold.batches import copied
from rankfold.run.disk.pretrained import is_folder
from rankfold.sites import unwrap


def running_model(
    source: str | Path | nn.Module | Mapping[str, Tensor], network: nn.Module, named: Named, *others: Named
) -> nn.Module:
    """The model itself, that of a folder, or else a copy of ``network`` with the tensors that are ``named``, of more
    rows too, as those of new tokens are. What it lacks is that of the first of ``others`` that has it.

    ``ValueError`` where none has a parameter: ``network`` says what the tensors are, not what is in them. A buffer that
    none has is what the network itself makes of it.
    """
    if isinstance(source, nn.Module):
        return unwrap(source)
    if isinstance(source, str | Path) and is_folder(source):
        from rankfold.hub import opened

        return opened(source)
    running = copied(unwrap(network))
    state = {name: value for name, value in running.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    if any(value.is_meta for value in state.values()):
        raise ValueError(
            "with data=, the model given as model= needs weights of its own: build it on a real device, not on the "
            "meta device"
        )
    given: dict[str, Tensor] = {}
    filled: set[int] = set()  # of tied names a file may hold one
    for each in (named, *others):
        found = {name: each.read(name) for name in each.keys if name in state and id(state[name]) not in filled}
        filled |= {id(state[name]) for name in found}
        given |= found
    lacking = [name for name, value in state.items() if isinstance(value, nn.Parameter) and id(value) not in filled]
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise ValueError(
            f"{named.title} has no tensor {lacking[0]}{more}, and with data= the whole model is called: give a "
            "checkpoint that has it"
        )
    for name, tensor in given.items():
        if state[name].shape != tensor.shape:
            state[name].data = state[name].new_empty(tensor.shape)
    running.load_state_dict(given, strict=False)
    return running.eval()
