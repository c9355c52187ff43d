"""Recurrent layers and cells taken apart into linear layers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from rankfold.layers.recurrent import SplitCell, SplitRecurrent
from rankfold.sites.opener import Opener, carry_, linear
from rankfold.sites.product import PARAMETRIZED, why_anew

_LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "RNN"}


def _why_not(module: nn.Module) -> str | None:
    """Why this recurrent module cannot be taken apart, or None if it can."""
    kind: Any = type(module)
    base: Any = next((base for base in (*_LAYERS, *_CELLS) if isinstance(module, base)), None)
    if parametrize.is_parametrized(module):
        return PARAMETRIZED  # by products too
    if (anew := why_anew(module)) is not None:
        return anew
    if base is None or kind.forward is not base.forward or "forward" in vars(module):
        return (
            f"{kind.__name__}: overrides the forward of a recurrent layer of torch, and may read the weights in any way"
        )
    return None


def _split(module: Any) -> SplitRecurrent:
    """The same layer with each matrix as a linear layer that holds the very parameters."""
    new = SplitRecurrent(module)
    for place in new.places:
        for side in ("ih", "hh"):
            bias = getattr(module, f"bias_{side}_{place}") if module.bias else None
            new.add_module(f"{side}_{place}", linear(getattr(module, f"weight_{side}_{place}"), bias))
        if module.proj_size:
            new.add_module(f"hr_{place}", linear(getattr(module, f"weight_hr_{place}"), None))
    carry_(module, new)
    return new


def _split_cell(module: Any) -> SplitCell:
    mode = next(mode for kind, mode in _CELLS.items() if isinstance(module, kind))
    mode = f"RNN_{module.nonlinearity.upper()}" if mode == "RNN" else mode
    new = SplitCell(mode, module.input_size, module.hidden_size)
    for side in ("ih", "hh"):
        new.add_module(side, linear(getattr(module, f"weight_{side}"), getattr(module, f"bias_{side}")))
    carry_(module, new)
    return new


OPENERS = (
    Opener(lambda module: isinstance(module, nn.RNNBase), _why_not, _split),
    Opener(lambda module: isinstance(module, nn.RNNCellBase), _why_not, _split_cell),
)
