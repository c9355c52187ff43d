"""The blocks of a network whose weights stay on the disk, as they are fitted: from there, and what became of them back.

A ``Sink`` takes the new layers of a block together with what was decided for it; a block that it has already is put
into the compressed network from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.applying.layer import build
from rankfold.compress.planning.plan import Entry
from rankfold.observe import Pages
from rankfold.run.disk.container import FAULTS, checked
from rankfold.sites import Form, SiteList, replace_


@dataclass(frozen=True)
class Shelf:
    """``found``: the sites of the network of ``pages``."""

    pages: Pages
    found: SiteList

    def ready(self, number: int, current: nn.Module, asked: Sequence[Entry]) -> dict[str, Entry] | None:
        """Put into ``current`` what became of block ``number``, whose weights are there; by site what was decided. None
        where nothing is kept of it, or of other ranks: it is fitted again."""
        known = None if self.pages.sink is None else self.pages.sink.ready(number)
        if known is None:
            return None
        try:
            entries = checked(tuple[Entry, ...], known[1]["entries"])
            if [each.site for each in entries] != [each.site for each in asked] or not all(
                map(_answers, entries, asked)
            ):
                return None
            made = [(each.site, self._layer(current, each, known[0])) for each in entries if each.form is not Form.KEEP]
        except FAULTS:
            return None
        for site, layer in made:
            replace_(current, {current.get_submodule(site): layer})
        return {each.site: each for each in entries}

    def _layer(self, current: nn.Module, entry: Entry, tensors: Mapping[str, Tensor]) -> nn.Module:
        start = f"{entry.site}."
        own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        layer = build(current.get_submodule(entry.site), self.found[entry.site], entry)
        layer.load_state_dict(own)
        return layer

    def put(self, number: int, current: nn.Module, entries: Sequence[Entry]) -> None:
        """Keep what became of block ``number`` in ``current``."""
        tensors = {
            f"{each.site}.{name}": value.detach()
            for each in entries
            if each.form is not Form.KEEP
            for name, value in current.get_submodule(each.site).state_dict().items()
        }
        note: dict[str, Any] = {"entries": [asdict(each) for each in entries]}
        if self.pages.sink is not None:
            self.pages.sink.put(number, tensors, note)

    def clear(self, current: nn.Module, sites: Sequence[str]) -> None:
        """Nothing of the block stays in memory."""
        self.pages.let_go()
        for name in sites:
            layer = current.get_submodule(name)
            if not all(parameter.is_meta for parameter in layer.parameters()):
                layer.to(torch.device("meta"))


def _answers(made: Entry, asked: Entry) -> bool:
    """Whether ``made`` is what a fit of ``asked`` gives: what was to be fitted anew may have stayed as it was."""
    alike = made.form is asked.form or (asked.form is Form.DENSE and made.form is Form.KEEP)
    return alike and (made.site, made.rank, made.bias) == (asked.site, asked.rank, asked.bias)
