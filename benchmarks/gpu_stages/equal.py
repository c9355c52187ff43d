"""Whether the same call gives the same on the device as on the CPU, in float32 and in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
    """Every method and form, fits in parts, training, products, low rank and recovery: the device against the CPU."""
    rows: list[dict[str, Any]] = []
    with exact_products():
        for case in (*_methods(context), *_forms(context), *_trainings(context), *_recoveries(context)):
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
    samples = 32 if context.dry else 512
    names = [method.name for method in METHODS]
    cases = [(name, said) for said in DTYPES for name in names]
    if context.dry:  # of the fits one, which the others differ from in the program alone, and one dtype for each
        cases = [(name, "float32") for name in ("project", "truncate", "tucker")] + [("sequential", "bfloat16")]

    def both(name: str, dtype: torch.dtype, memory: int | None = None) -> tuple[Tensor, Tensor]:
        return on_both(context, lambda device: _outputs(name, dtype, device, samples, memory))

    made = [
        compared(f"{name}, {said}", DTYPES[said][1], lambda name=name, said=said: both(name, DTYPES[said][0]))
        for name, said in cases
    ]
    # 20 MB: moments a few layers at a time
    streamed = compared("sequential in parts, float32", FLOAT32, lambda: both("sequential", torch.float32, 20_000_000))
    return [*made, streamed]


def on_both(context: Context, work: Callable[[torch.device], Tensor]) -> tuple[Tensor, Tensor]:
    """(on the CPU, on the device); where the device is the CPU, the same once."""
    expected = work(torch.device("cpu"))
    return expected, expected if context.device.type == "cpu" else work(context.device)


def _forms(context: Context) -> list[Callable[[], dict[str, Any]]]:
    """Every form that a layer can take, at a rank, applied to the same inputs."""
    model, images = _network(), _images(16, 4)
    cases = {
        (site.name, form): site
        for site in rf.sites(model)
        if site.name in RANKS["matrix"]
        for form in sorted(site.forms - {rf.Form.KEEP, rf.Form.DENSE})
        if not (context.dry and site.name == "body")  # of two convolutions one shows every form
    }

    def outputs(name: str, form: rf.Form, device: torch.device) -> Tensor:
        method = form.value if form.value in RANKS else "truncate"
        rank = RANKS.get(method, RANKS["matrix"])[name]
        plan = rf.plan(model, rf.Ranks({name: rank}), method, example=images[:1])
        entries = tuple(e if e.site != name else replace(e, form=form) for e in plan.entries)
        small = rf.apply_(copy.deepcopy(model), plan.with_entries(entries)).to(device)
        with torch.no_grad():
            return small(images.to(device))

    return [
        compared(
            f"form {form.value} of {name}", FLOAT32,
            lambda name=name, form=form: on_both(context, lambda device: outputs(name, form, device)),
        )
        for name, form in cases
    ]  # fmt: skip


def _outputs(name: str, dtype: torch.dtype, device: torch.device, samples: int, memory: int | None = None) -> Tensor:
    """What a network answers that was compressed to fixed ranks and repaired, all of it on ``device``."""
    original = _network().to(device, dtype)
    data = [batch.to(device, dtype) for batch in _images(samples, 1).split(64)]
    ranks = rf.Ranks(RANKS.get(name, RANKS["matrix"]))
    calibration = rf.Calibration(memory=memory)
    plan = rf.plan(original, ranks, name, data, example=data[0][:1], calibration=calibration)
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
        recipe = rf.Recipe(epochs=1 if context.dry else 2, batch_size=32, learning_rate=0.02, precision=precision)
        rf.fit(model, (images, labels), None, recipe)
        rf.fold_(model)
        return torch.tensor([rf.evaluate(model, (images, labels)).loss])

    def low_rank(place: torch.device, convolutions: Any = "matrix") -> Tensor:
        """Layers on the manifold of rank 6, a window of five steps, the bases turned and cut."""
        model = _network()
        rf.dlrt_(model, rank=6, convolutions=convolutions)
        model.to(place)
        optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.02, window=5, tolerance=0.05)
        x, y = images.to(place), labels.to(place)
        for step in range(6 if context.dry else 20):
            part = slice(32 * step % len(x), 32 * step % len(x) + 32)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        optimizer.settle()
        with torch.no_grad():
            return nn.functional.cross_entropy(model(x), y).cpu().view(1)

    kinds: dict[str, Callable[[nn.Module], Any]] = {
        "training": lambda model: None,
        "training of products": lambda model: rf.overparametrize_(model, 3),
    }
    precisions = (("float32", TRAINED), ("bfloat16", TRAINED_BFLOAT16))
    made = [
        compared(
            f"{what}, {precision}",
            tolerance,
            lambda precision=precision, prepare=prepare: on_both(
                context, lambda place: loss(place, precision, prepare)
            ),
        )
        for what, prepare in kinds.items()
        for precision, tolerance in precisions
    ]
    tucker = partial(low_rank, convolutions="tucker")
    return [
        *made,
        compared("low-rank training, float32", TRAINED, lambda: on_both(context, low_rank)),
        compared("low-rank training in Tucker's form, float32", TRAINED, lambda: on_both(context, tucker)),
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
        return on_both(context, lambda device: torch.from_numpy(np.asarray(make(str(device)).fit(known).reconstruct())))

    return [compared(f"recovery, {name}", RECOVERED, lambda make=make: both(make)) for name, make in estimators.items()]
