"""Recurrent layers taken apart into linear layers: each matrix is called as one, so that it can be factored alone.

The input side is one product over the whole sequence, the recurrent side one for each time step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rankfold.layers.linear import LowRankLinear
from rankfold.layers.pivoted import Completion, PivotedLinear
from rankfold.layers.weights.scripting import EXCLUDED, Traced
from rankfold.layers.weights.weight import FactoredWeight

State = tuple[Tensor, ...]  # (h,), of an LSTM (h, c)
Step = Callable[[Tensor, Tensor, State], State]


def lstm(x: Tensor, h: Tensor, state: State) -> State:
    """(h, c) after one step, from what input and state give, each (B, 4·hidden)."""
    enter, forget, new, out = (x + h).chunk(4, -1)
    c = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return out.sigmoid() * c.tanh(), c


def gru(x: Tensor, h: Tensor, state: State) -> State:
    (reset, keep, new), (reset_h, keep_h, new_h) = x.chunk(3, -1), h.chunk(3, -1)
    new = (new + (reset + reset_h).sigmoid() * new_h).tanh()
    return ((state[0] - new) * (keep + keep_h).sigmoid() + new,)


STEPS: dict[str, Step] = {
    "LSTM": lstm,
    "GRU": gru,
    "RNN_TANH": lambda x, h, state: ((x + h).tanh(),),
    "RNN_RELU": lambda x, h, state: ((x + h).relu(),),
}
_KERNELS: dict[str, Any] = {
    "LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu,
}  # fmt: skip


class SplitRecurrent(Traced):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` with every matrix as a linear layer; same arguments, same result.

    Children ``ih_l0`` (from the input), ``hh_l0`` (from the state), of an LSTM with projections ``hr_l0``, then
    ``ih_l0_reverse``, ``ih_l1`` …: the names of torch's weights. Every product runs on the factors, but in training,
    where gradients of the weights are wanted: there torch's own kernel runs on the weights multiplied out, once for
    each call, since a time step costs less than the bookkeeping of its gradients. Hooks on the children, or other
    layers in their places, keep to the products.
    """

    unscripted = ("whose steps are a loop of Python (a trace keeps the example's length)", f"the layer {EXCLUDED}")

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.mode: str = like.mode
        self.input_size: int = like.input_size
        self.hidden_size: int = like.hidden_size
        self.num_layers: int = like.num_layers
        self.batch_first: bool = like.batch_first
        self.dropout: float = like.dropout
        self.bidirectional: bool = like.bidirectional
        self.proj_size: int = like.proj_size
        self.bias: bool = like.bias

    def __getattr__(self, name: str) -> Any:
        """``weight_ih_l0``, ``bias_hh_l0``, … for code of a model's own that reads them: those of the layers inside."""
        kind, _, inside = name.partition("_")
        if kind in ("weight", "bias") and (layer := self._modules.get(inside)) is not None:
            return getattr(layer, kind)
        return super().__getattr__(name)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """As of torch's layer: those of each place."""
        names = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * self.bias + ["weight_hr"] * bool(self.proj_size)
        return [[getattr(self, f"{name}_{place}") for name in names] for place in self.places]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [weight for weights in self.all_weights for weight in weights]

    @property
    def places(self) -> list[str]:
        """What each direction of each layer is called, in torch's order."""
        ways = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{way}" for layer in range(self.num_layers) for way in ways]

    def flatten_parameters(self) -> None:
        """Nothing, as on a CPU: models call it before they run."""

    def takes(self, x: Tensor) -> str:
        """In words what the layer takes, where ``x`` is something else; "" where it fits."""
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            return f"{self.input_size} values in the last axis of two or three"
        steps = x.shape[1 if x.dim() == 3 and self.batch_first else 0]
        return "" if steps else "sequences of at least one step"

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, Any]:
        """See ``torch.nn.LSTM.forward``, ``torch.nn.GRU.forward``: same arguments, shapes and result."""
        if isinstance(input, PackedSequence):
            x, sizes, order, back = input
            start = self._start(x, int(sizes[0]), hx, order)
            output, state = self._run(x, sizes, start)
            return PackedSequence(output, sizes, order, back), self._given(state, back)
        if wanted := self.takes(input):
            raise ValueError(f"a {self.mode} takes {wanted}, and was given {'×'.join(map(str, input.shape))}")
        batched = input.dim() == 3
        x = input.transpose(0, 1) if batched and self.batch_first else input if batched else input.unsqueeze(1)
        if not batched and hx is not None:
            hx = hx.unsqueeze(1) if isinstance(hx, Tensor) else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        output, state = self._run(x, None, self._start(x, x.shape[1], hx, None))
        if not batched:
            return output.squeeze(1), self._given(tuple(part.squeeze(1) for part in state), None)
        return (output.transpose(0, 1) if self.batch_first else output), self._given(state, None)

    def _start(self, x: Tensor, samples: int, hx: Any, order: Tensor | None) -> State:
        """(layers·directions, samples, width) of each part of the state."""
        widths = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
        count = len(self.places)
        if hx is None:
            return tuple(x.new_zeros(count, samples, width) for width in widths)
        state: State = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        for part, width in zip(state, widths, strict=True):
            if tuple(part.shape) != (count, samples, width):  # broadcasting would hide it
                given = "×".join(map(str, part.shape))
                raise ValueError(
                    f"a {self.mode} takes a state of shape {count}×{samples}×{width} here, and was given {given}"
                )
        return state if order is None else tuple(part.index_select(1, order) for part in state)

    def _given(self, state: State, back: Tensor | None) -> Any:
        if back is not None:
            state = tuple(part.index_select(1, back) for part in state)
        return state if self.mode == "LSTM" else state[0]

    def _run(self, x: Tensor, sizes: Tensor | None, start: State) -> tuple[Tensor, State]:
        """Outputs and final state of ``x`` (T, B, n), or packed (N, n) with the samples of each step in ``sizes``."""
        if self._by_kernel():
            return self._kernel(x, sizes, start)
        steps, ends = None if sizes is None else sizes.tolist(), []
        for layer in range(self.num_layers):
            outputs = []
            for at, place in enumerate(self.places):
                if place.partition("_")[0] == f"l{layer}":
                    output, end = self._one(place, x, steps, tuple(part[at] for part in start))
                    outputs.append(output)
                    ends.append(end)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.dropout and self.training and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout)
        return x, tuple(torch.stack(parts) for parts in zip(*ends))

    def _one(self, place: str, x: Tensor, sizes: Sequence[int] | None, start: State) -> tuple[Tensor, State]:
        """One layer in one direction."""
        enter, recur = self.get_submodule(f"ih_{place}"), self.get_submodule(f"hh_{place}")
        project, step = self._modules.get(f"hr_{place}"), STEPS[self.mode]
        # sample after sample where the data come so: whoever watches the layer tells samples apart by their rows
        turned = sizes is None and self.batch_first
        whole = enter(x.transpose(0, 1)).transpose(0, 1) if turned else enter(x)
        parts = whole.unbind(0) if sizes is None else whole.split(sizes)
        now = start if sizes is None or not place.endswith("_reverse") else tuple(s[: sizes[-1]] for s in start)
        outputs, ended = [], []
        for part in reversed(parts) if place.endswith("_reverse") else parts:
            if sizes is not None and part.shape[0] < now[0].shape[0]:  # some samples have ended
                ended.append(tuple(s[part.shape[0] :] for s in now))
                now = tuple(s[: part.shape[0]] for s in now)
            elif sizes is not None and part.shape[0] > now[0].shape[0]:  # backwards: longer ones begin
                now = tuple(torch.cat([s, first[s.shape[0] : part.shape[0]]]) for s, first in zip(now, start))
            now = step(part, recur(now[0]), now)
            if project is not None:
                now = (project(now[0]), *now[1:])
            outputs.append(now[0])
        if ended:
            now = tuple(torch.cat(pieces) for pieces in zip(now, *reversed(ended)))
        outputs = outputs[::-1] if place.endswith("_reverse") else outputs
        return (torch.stack(outputs) if sizes is None else torch.cat(outputs)), now

    def _by_kernel(self) -> bool:
        """Whether the matrices are being trained, and nothing is between these and torch's kernel."""
        wanted = self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if not wanted or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        inside = [module for module in self.modules() if module is not self]
        plain = all(type(module) in _PLAIN and not _watched(module) for module in inside)
        return plain and not torch._C._are_functorch_transforms_active()

    def _kernel(self, x: Tensor, sizes: Tensor | None, start: State) -> tuple[Tensor, State]:
        kernel, state = _KERNELS[self.mode], start if self.mode == "LSTM" else start[0]
        pairs: list[list[Any]] = [[self.get_submodule(f"{side}_{at}") for side in ("ih", "hh")] for at in self.places]
        biased = any(layer.bias is not None for pair in pairs for layer in pair)
        flat: list[Tensor] = []
        for place, pair in zip(self.places, pairs, strict=True):
            weights = [_product(layer) for layer in pair]
            flat += weights
            if biased:
                flat += [w.new_zeros(len(w)) if lay.bias is None else lay.bias for lay, w in zip(pair, weights)]
            if self.proj_size:
                flat.append(_product(self.get_submodule(f"hr_{place}")))
        setting = (flat, biased, self.num_layers, self.dropout, self.training, self.bidirectional)
        found = kernel(x, state, *setting, False) if sizes is None else kernel(x, sizes, state, *setting)
        return found[0], tuple(found[1:])

    def extra_repr(self) -> str:
        said = f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        return f"{said}, batch_first={self.batch_first}, bidirectional={self.bidirectional}"


class SplitCell(Traced):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell`` as two linear layers, ``ih`` from the input and ``hh`` from the
    state; same arguments, same result."""

    unscripted = ("whose matrices are layers of their own", f"the layer {EXCLUDED}")

    def __init__(self, mode: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        self.ih: Any
        self.hh: Any

    @property
    def weight_ih(self) -> Any:
        return self.ih.weight

    @property
    def weight_hh(self) -> Any:
        return self.hh.weight

    @property
    def bias_ih(self) -> Any:
        return self.ih.bias

    @property
    def bias_hh(self) -> Any:
        return self.hh.bias

    def takes(self, x: Tensor) -> str:
        """In words what the cell takes, where ``x`` is something else; "" where it fits."""
        fits = x.dim() in (1, 2) and x.shape[-1] == self.input_size
        return "" if fits else f"{self.input_size} values in the last axis"

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """See ``torch.nn.LSTMCell.forward``: same arguments, shapes and result."""
        if wanted := self.takes(input):
            raise ValueError(f"a cell takes {wanted}, and was given {'×'.join(map(str, input.shape))}")
        shape = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            state: State = (input.new_zeros(shape),) * (2 if self.mode == "LSTM" else 1)
        else:
            state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        for part in state:
            if tuple(part.shape) != shape:
                wanted, given = ("×".join(map(str, size)) for size in (shape, part.shape))
                raise ValueError(f"a cell takes a state of shape {wanted} here, and was given {given}")
        found = STEPS[self.mode](self.ih(input), self.hh(state[0]), state)
        return found if self.mode == "LSTM" else found[0]

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}"


_PLAIN = (nn.Linear, LowRankLinear, PivotedLinear, Completion)


def _watched(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _product(layer: Any) -> Tensor:
    """The weight of a linear layer, multiplied out; differentiable."""
    weight = layer.weight
    return weight.product() if isinstance(weight, FactoredWeight) else weight
