"""Random networks as hypothesis draws and shrinks them: layers, settings, dtypes, sharing, outputs, modes; and what is
asked of them: a method, budgets, forms, and what is done with the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from rankfold import Multiples

BATCH = 24
SIZES = {"rows": (), "bags": (4,), "tokens": (5,), "ids": (5,), "line": (13,), "image": (9, 8), "volume": (5, 4, 6)}
WORDS = 11  # rows of a table
DIMS = {"line": 1, "image": 2, "volume": 3}
PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TURNED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WIDTHS = (4, 6, 8, 12)


@dataclass(frozen=True)
class Piece:
    """One step of a network: what it is, how wide it makes what it gets, and settings as torch takes them."""

    kind: str
    width: int
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A network before it is built, and what is asked of it."""

    domain: str
    start: int
    pieces: tuple[Piece, ...]
    output: str
    dtype: torch.dtype
    mode: str
    method: str
    resource: str
    keep: float
    beside: str = ""
    forms: str | None = None
    then: str = "nothing"
    tied: bool = False

    @property
    def budgets(self) -> list[Any]:
        """What is asked, as ``rankfold.plan`` takes it."""
        asked = {"": [], "sites": ["of=sites"], "multiples": [Multiples(2)]}[self.beside]
        return [f"{self.resource}={self.keep}", *asked]


def given_as(draw: Any, value: int, dims: int) -> Any:
    """A number, or one for each axis, or a sequence of one number."""
    return draw(st.sampled_from([value, (value,) * dims, [value], (value,)]))


@st.composite
def convolution(draw: Any, domain: str, width: int) -> tuple[tuple[str, Any], ...]:
    dims, kernel = DIMS[domain], draw(st.sampled_from([1, 2, 3]))
    options: dict[str, Any] = {
        "kernel": kernel,
        "bias": draw(st.booleans()),
        "groups": draw(st.sampled_from([1, 1, 2])),
    }
    options["transposed"] = draw(st.integers(0, 4)) == 0
    if options["transposed"]:
        options["stride"] = draw(st.sampled_from([1, 2]))
        return tuple(options.items())
    named = draw(st.sampled_from([None, None, "same", "valid"]))
    if named is None:
        options["padding"] = given_as(draw, draw(st.integers(0, 2)), dims)
        options["stride"] = given_as(draw, draw(st.sampled_from([1, 1, 2])), dims)
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "replicate", "circular"]))
        if options["padding_mode"] != "zeros" and not isinstance(options["padding"], int):
            options["padding"] = options["padding"][0]
    else:
        options["padding"] = named
    options["dilation"] = given_as(draw, draw(st.sampled_from([1, 1, 2])), dims)
    return tuple(options.items())


@st.composite
def recurrent(draw: Any, width: int) -> tuple[tuple[str, Any], ...]:
    """A recurrent layer of torch in any of its settings."""
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    options = {
        "kind": kind, "num_layers": draw(st.sampled_from([1, 1, 2])), "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }  # fmt: skip
    if kind == "LSTM":
        options["proj_size"] = draw(st.sampled_from([0, width // 2]))
    return tuple(options.items())


ROWS = ("linear", "linear", "norm", "act", "residual", "shared", "read", "cell")
TOKENS = ("linear", "norm", "act", "residual", "shared", "read", "attention", "encoder", "recurrent", "query")
KINDS = {
    "rows": ROWS, "bags": ROWS, "tokens": TOKENS, "ids": TOKENS,
    **dict.fromkeys(DIMS, ("conv", "conv", "norm", "act", "around")),
}  # fmt: skip
FORMS = (
    None,
    None,
    None,
    "all",
    "factored,pivoted,shared",
    "int8",
    "int8,factored",
    "residual",
    "residual,int8,factored,tucker,cp",
    "pivoted",
)


@st.composite
def recipes(draw: Any, methods: tuple[str, ...], resources: tuple[str, ...]) -> Recipe:
    domain = draw(st.sampled_from(sorted(SIZES)))
    pieces = []
    for _ in range(draw(st.integers(1, 5))):
        kind, width = draw(st.sampled_from(KINDS[domain])), draw(st.sampled_from(WIDTHS))
        options = draw(convolution(domain, width)) if kind == "conv" else ()
        if kind == "recurrent":
            options = draw(recurrent(width))
        if kind == "cell":
            options = (("kind", draw(st.sampled_from(["LSTMCell", "GRUCell", "RNNCell"]))),)
        if kind == "act":
            options = (("name", draw(st.sampled_from(["relu", "gelu", "tanh", "silu"]))),)
        pieces.append(Piece(kind, width, options))
    return Recipe(
        domain, draw(st.sampled_from(WIDTHS)), tuple(pieces),
        draw(st.sampled_from(["tensor", "tuple", "dict", "places first", "nested"])),
        draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])),
        draw(st.sampled_from(["eval", "train", "mixed"])),
        draw(st.sampled_from(methods)),
        draw(st.sampled_from(resources)),
        draw(st.sampled_from([0.95, 0.8, 0.6, 0.4])),
        draw(st.sampled_from(["", "", "", "sites", "multiples"])),
        draw(st.sampled_from(FORMS)),
        draw(st.sampled_from(["nothing", "saved", "restored", "trained"])),
        draw(st.booleans()),
    )  # fmt: skip


class Network(nn.Module):
    """Its steps one after another, an average over places, and a head of one or two layers."""

    def __init__(self, steps: list[tuple[str, nn.Module]], width: int, output: str) -> None:
        super().__init__()
        self.kinds = [kind for kind, _ in steps]
        self.steps = nn.ModuleList(module for _, module in steps)
        self.head, self.other, self.output = nn.Linear(width, 3), nn.Linear(width, 5, bias=False), output

    def forward(self, x: Tensor) -> Any:
        for kind, step in zip(self.kinds, self.steps, strict=True):
            x = WAYS.get(kind, lambda step, x: step(x))(step, x)
        if x.dim() > 2:
            x = x.mean(1) if self.kinds and self.kinds[0] in ("tokens", "ids") else x.flatten(2).mean(2)
        first, second = self.head(x), self.other(x)
        return {
            "tensor": first, "tuple": (first, second), "dict": {"wide": second, "logits": first},
            "places first": (second.argmax(1), first), "nested": {"a": (first,), "b": [second, None]},
        }[self.output]  # fmt: skip


def _read(step: Any, x: Tensor) -> Tensor:
    return F.linear(x, step.weight, step.bias) + step(x)


def _asked(step: Any, x: Tensor) -> Tensor:
    """A view of a parameter handed to a layer, beside the data."""
    return x + step["layer"](step["query"].weight.unsqueeze(0).expand(len(x), -1, -1)).mean(1, keepdim=True)


WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "residual": lambda step, x: x + step(x),
    "around": lambda step, x: x + step(x),
    "shared": lambda step, x: step(torch.tanh(step(x))),
    "read": _read,
    "attention": lambda step, x: x + step(x, x, x, need_weights=False)[0],
    "recurrent": lambda step, x: step(x)[0],
    "cell": lambda step, x: found if isinstance(found := step(x), Tensor) else found[0],
    "query": _asked,
}


def _step(recipe: Recipe, piece: Piece, width: int) -> tuple[nn.Module, int]:
    """The module of a piece for an input of this width, and the width of its output."""
    options = dict(piece.options)
    if piece.kind == "linear":
        return nn.Linear(width, piece.width), piece.width
    if piece.kind in ("residual", "shared", "read"):
        return nn.Linear(width, width, bias=piece.width > 6 or piece.kind == "read"), width
    if piece.kind == "act":
        return {"relu": nn.ReLU(), "gelu": nn.GELU(), "tanh": nn.Tanh(), "silu": nn.SiLU()}[options["name"]], width
    if piece.kind == "norm":
        if recipe.domain not in DIMS:
            return (nn.LayerNorm if recipe.domain in ("tokens", "ids") else nn.BatchNorm1d)(width), width
        return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[DIMS[recipe.domain] - 1](width), width
    if piece.kind in ("attention", "encoder") and width % 2:
        raise ValueError("two heads of an odd width")
    if piece.kind == "attention":
        return nn.MultiheadAttention(width, 2, batch_first=True), width
    if piece.kind == "encoder":
        return nn.TransformerEncoderLayer(width, 2, piece.width, batch_first=True, dropout=0.1), width
    if piece.kind == "recurrent":
        made = getattr(nn, options.pop("kind"))(width, piece.width, batch_first=True, **options)
        return made, (options.get("proj_size") or piece.width) * (2 if options["bidirectional"] else 1)
    if piece.kind == "cell":
        return getattr(nn, options["kind"])(width, piece.width), piece.width
    if piece.kind == "query":
        return nn.ModuleDict({"query": nn.Embedding(3, width), "layer": nn.Linear(width, width)}), width
    if piece.kind == "around":
        return PLAIN[DIMS[recipe.domain] - 1](width, width, 3, padding="same"), width
    groups = options.pop("groups")
    groups = groups if width % groups == 0 and piece.width % groups == 0 else 1
    kinds = TURNED if options.pop("transposed") else PLAIN
    made = kinds[DIMS[recipe.domain] - 1](width, piece.width, options.pop("kernel"), groups=groups, **options)
    return made, piece.width


def built(recipe: Recipe) -> tuple[Network, Tensor]:
    """The network with random weights of a moderate size, in its mode, and a batch; ``ValueError`` where the pieces do
    not fit (a kernel larger than what it meets)."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width, steps = recipe.start, []
        for piece in recipe.pieces:
            module, width = _step(recipe, piece, width)
            steps.append((f"{recipe.domain} {piece.kind}" if piece.kind not in WAYS else piece.kind, module))
        first = {"ids": nn.Embedding, "bags": nn.EmbeddingBag}.get(recipe.domain)
        if first is not None or (recipe.domain == "tokens" and steps):
            table = nn.Identity() if first is None else first(WORDS, recipe.start)
            steps = [(recipe.domain, table), *steps]
        network = Network(steps, width, recipe.output).to(recipe.dtype)
        if first is not None and recipe.tied and width == recipe.start:
            network.other = nn.Linear(width, WORDS, bias=False, dtype=recipe.dtype)
            network.other.weight = network.steps[0].weight
    network.train(recipe.mode == "train")
    if recipe.mode == "mixed":
        for number, module in enumerate(network.modules()):
            module.training = number % 3 == 0
    sizes = SIZES[recipe.domain]
    if recipe.domain in ("ids", "bags"):
        return network, torch.randint(WORDS, (BATCH, *sizes), generator=generator)
    shape = (BATCH, *sizes, recipe.start) if recipe.domain == "tokens" else (BATCH, recipe.start, *sizes)
    inputs = torch.randn(shape, generator=generator).to(recipe.dtype)
    return network, inputs
