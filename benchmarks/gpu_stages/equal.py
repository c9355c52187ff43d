"""Whether the same call gives the same on the device as on the CPU, in float32 and in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rankfold as rf
from gpu_stages.stage import Context, stage
from rankfold.compress.methods import METHODS
from rankfold.compress.methods.method import fits_layers

# relative distance of outputs, ‖device − CPU‖ / ‖CPU‖. Factors are computed in float64 from moments of float32
# activations, so that only forward passes differ; bfloat16 has eight bits, and errors add up over the layers.
FLOAT32, BFLOAT16 = 1e-3, 5e-2
TRAINED = 2e-2  # of the loss after a short training: rounding is amplified by every step
TRAINED_BFLOAT16 = 1e-1
RECOVERED = 1e-6  # of the matrix, in float64
DTYPES = {"float32": (torch.float32, FLOAT32), "bfloat16": (torch.bfloat16, BFLOAT16)}
SEED = 0


@stage("equal", minutes=4)
def equal(context: Context) -> dict[str, Any]:
    """Every method, sequential fitting, training and matrix recovery: the device against the CPU."""
    rows: list[dict[str, Any]] = []
    with exact_products():
        for case in (*_methods(context), *_trainings(context), *_recoveries(context)):
            rows.append(case())
    wrong = [f"{row['what']}: {row['said']}" for row in rows if not row["equal"]]
    worst = max((row["distance"] / row["tolerance"] for row in rows if "distance" in row), default=0.0)
    said = f"{len(rows)} comparisons, the farthest at {worst:.2g} of its tolerance"
    return {"said": said, "wrong": wrong, "comparisons": rows}


@contextmanager
def exact_products() -> Iterator[None]:
    """float32 means float32: no TensorFloat32 in products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def compared(what: str, tolerance: float, both: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], dict[str, Any]]:
    """A comparison that can be made: (on the CPU, on the device). One that raises is one that is not equal."""

    def case() -> dict[str, Any]:
        try:
            expected, found = (value.detach().double().cpu() for value in both())
        except Exception as error:  # the other comparisons are still worth making
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return {"what": what, "equal": False, "said": said}
        distance = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
        said = f"distance {distance:.2g}, tolerance {tolerance:g}"
        return {
            "what": what,
            "equal": distance <= tolerance,  # false for NaN
            "said": said,
            "distance": distance,
            "tolerance": tolerance,
        }

    return case


class Small(nn.Module):
    """Convolutions, a BatchNorm, a residual connection and two linear layers: (N, 3, 12, 12) → (N, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(24 * 36, 32), nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.body(x))
        x = torch.relu(self.down(x)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


# of tensor methods those that they have, and the convolutions alone
RANKS = {
    "matrix": {"body": 6, "down": 8, "hidden": 10},
    "tucker": {"body": 6, "down": 8},
    "cp": {"body": 5, "down": 9},
}


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Small().train()
        for _ in range(5):
            model(torch.randn(32, 3, 12, 12))
    return model.eval()


def _images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def _methods(context: Context) -> list[Callable[[], dict[str, Any]]]:
    samples = 64 if context.dry else 512
    names = [method.name for method in METHODS]
    if context.dry:  # these two take most of the time, and differ from sequential in the program alone
        names = [name for name in names if name not in ("nuclear", "maxnorm")]

    def both(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return tuple(_outputs(name, dtype, torch.device(place), samples) for place in ("cpu", context.device))

    return [
        compared(f"{name}, {said}", tolerance, lambda name=name, dtype=dtype: both(name, dtype))
        for said, (dtype, tolerance) in DTYPES.items()
        for name in names
    ]


def _outputs(name: str, dtype: torch.dtype, device: torch.device, samples: int) -> Tensor:
    """What a network answers that was compressed to fixed ranks and repaired, all of it on ``device``."""
    original = _network().to(device, dtype)
    data = [batch.to(device, dtype) for batch in _images(samples, 1).split(64)]
    plan = rf.plan(original, rf.Ranks(RANKS.get(name, RANKS["matrix"])), name, data, example=data[0][:1])
    small = rf.apply_(copy.deepcopy(original), plan)
    if not any(method.name == name and fits_layers(method) for method in METHODS):
        rf.reestimate_(small, original, data)
    with torch.no_grad():
        return small(_images(128, 2).to(device, dtype))


def _trainings(context: Context) -> list[Callable[[], dict[str, Any]]]:
    count = 64 if context.dry else 512
    images = _images(count, 3)
    labels = (images.mean((1, 2, 3)).argsort().argsort() * 7) // count

    def loss(place: Any, precision: Any, prepare: Callable[[nn.Module], Any]) -> Tensor:
        model = _network()
        prepare(model)
        model.to(place)
        recipe = rf.Recipe(epochs=2, batch_size=32, learning_rate=0.02, precision=precision)
        rf.fit(model, (images, labels), None, recipe)
        rf.fold_(model)
        return torch.tensor([rf.evaluate(model, (images, labels)).loss])

    kinds: dict[str, Callable[[nn.Module], Any]] = {
        "training": lambda model: None,
        "training of products": lambda model: rf.overparametrize_(model, 3),
    }
    precisions = (("float32", TRAINED), ("bfloat16", TRAINED_BFLOAT16))
    return [
        compared(
            f"{what}, {precision}",
            tolerance,
            lambda precision=precision, prepare=prepare: (
                loss("cpu", precision, prepare),
                loss(context.device, precision, prepare),
            ),
        )
        for what, prepare in kinds.items()
        for precision, tolerance in precisions
    ]


def _recoveries(context: Context) -> list[Callable[[], dict[str, Any]]]:
    from rankfold import recover

    m, n = (30, 40) if context.dry else (300, 400)
    rng = np.random.default_rng(SEED)
    truth = rng.standard_normal((m, 3)) @ rng.standard_normal((3, n))
    known = np.where(rng.random((m, n)) < 0.5, truth, np.nan)
    estimators = {
        "compressed deep linear": lambda device: recover.CompressedDeepLinear(5, device=device),
        "alternating": lambda device: recover.AlternatingMinimization(3, device=device),
        "nuclear": lambda device: recover.NuclearNorm(device=device),
        "scaled gradient descent": lambda device: recover.ScaledGradientDescent(3, device=device),
        "low rank": lambda device: recover.LowRank(5, device=device),
    }

    def both(make: Callable[[str], Any]) -> tuple[Tensor, Tensor]:
        return tuple(
            torch.from_numpy(np.asarray(make(place).fit(known).reconstruct())) for place in ("cpu", str(context.device))
        )

    return [compared(f"recovery, {name}", RECOVERED, lambda make=make: both(make)) for name, make in estimators.items()]
