"""A network is timed where it will run: what is timed there computes what the model computes."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from typer.testing import CliRunner

import rankfold as rf
from rankfold.cli.main import app
from rankfold.export import ExportError, target_latencies, targets


class Named(nn.Module):
    """Inputs by name, given in another order than they are taken, one of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(10, 16), nn.Linear(16, 16)
        self.calls = 0

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        return self.layer(self.embed(ids)) * scale.unsqueeze(-1)


EXAMPLE = {"scale": torch.rand(3, 5), "ids": torch.arange(15).reshape(3, 5) % 10}


def test_a_session_answers_as_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, seen = Named().eval(), []

    def timed(running: dict[str, nn.Module], example: object, **given: object) -> dict[str, float]:
        seen.append((torch.as_tensor(running["a"](**example.kwargs)[0]), example.samples))
        return {"a": 1.0}

    monkeypatch.setattr(targets, "latencies", timed)
    assert target_latencies({"a": model}, EXAMPLE, "onnxruntime", batch=7) == {"a": 1.0}
    (found, samples), places = seen[0], torch.arange(7) % 3
    assert samples == 7
    torch.testing.assert_close(found, model(EXAMPLE["ids"][places], EXAMPLE["scale"][places]))


@pytest.mark.parametrize("target", ["eager", "onnxruntime"])
def test_both_are_timed_and_left_as_found(target: str) -> None:
    models = {name: Named() for name in ("a", "b")}
    found = target_latencies(models, EXAMPLE, target, seconds=0.0)
    assert set(found) == {"a", "b"}
    assert all(ms > 0 for ms in found.values())
    assert all(model.training for model in models.values())


def test_what_is_compiled_is_compiled_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    def compiled(model: nn.Module, backend: Any, dynamic: bool) -> nn.Module:
        backend.graphs += 1
        model.register_forward_pre_hook(lambda *_: happened.append("called"))
        return model

    def timed(running: object, *_: object, **__: object) -> dict[str, float]:
        happened.append("timed")
        return {}

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(targets, "latencies", timed)
    target_latencies({"a": Named(), "b": Named()}, EXAMPLE, "compile")
    assert happened == ["called", "called", "timed"]

    def fails(model: nn.Module, **_: object) -> nn.Module:
        raise_it = nn.Identity()
        raise_it.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no compiler\nmore")))
        return raise_it

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ExportError, match=r"torch\.compile fails for this model: RuntimeError: no compiler$"):
        target_latencies({"a": Named()}, {"input": torch.zeros(1)}, "compile")


class Narrow(nn.Module):
    def __init__(self, rank: int = 4) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(16, rank), nn.Linear(rank, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x)))


class Broken(Narrow):
    """Of which torch compiles two parts."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        torch._dynamo.graph_break()
        return self.up(torch.relu(x))


@pytest.mark.parametrize("kind", [Narrow, Broken])
def test_every_model_is_compiled_for_this_very_input(kind: type[Narrow], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the ninth of a class, at which torch goes back to what is not compiled, and at a second size."""
    seen: list[tuple[tuple[int, ...], bool]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        symbols = any(isinstance(size, torch.SymInt) for x in inputs for size in getattr(x, "shape", ()))
        return lambda *given: (seen.append((tuple(given[-1].shape), symbols)), graph(*given))[1]

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: backend)
    models = {str(rank): kind(rank) for rank in range(2, 11)} | {"again": kind(2)}
    parts = 1 if kind is Narrow else 2
    for batch in (2, 5):
        seen.clear()
        target_latencies(models, torch.rand(2, 16), "compile", batch=batch, seconds=0.0)
        calls = 1 + 1 + 3  # to compile it, to warm up, and three rounds
        assert len(seen) == calls * parts * len(models)
        assert not any(symbols for _, symbols in seen)


def test_the_default_compiler_of_torch_is_used() -> None:
    graphs = counters["stats"]["unique_graphs"]
    assert target_latencies({"a": Narrow()}, torch.rand(2, 16), "compile", seconds=0.0)["a"] > 0
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert counters["inductor"]


def test_what_is_not_compiled_is_not_timed_as_compiled() -> None:
    class Skipped(Narrow):
        @torch.compiler.disable
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(ExportError, match=r"torch\.compile compiles no part of this model.*target eager"):
        target_latencies({"a": Skipped()}, torch.rand(2, 16), "compile", seconds=0.0)


class Mapped(nn.Module):
    """Inputs inside of another, and any number of them."""

    def forward(self, given: dict[str, Tensor], *others: Tensor) -> Tensor:
        return given["x"] - 2 * given["y"] + sum(3 * other for other in others)


def test_inputs_within_others_reach_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def timed(running: dict[str, nn.Module], example: Any, **given: object) -> dict[str, float]:
        seen.append(torch.as_tensor(running["a"](*example.args, **example.kwargs)[0]))
        return {"a": 1.0}

    x, y, a, b = torch.rand(4, 2, 3).requires_grad_()
    monkeypatch.setattr(targets, "latencies", timed)
    target_latencies({"a": Mapped()}, ({"x": x, "y": y}, a, b), "onnxruntime", batch=2)
    torch.testing.assert_close(seen[0], (x - 2 * y + 3 * a + 3 * b).detach())


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y


@pytest.mark.parametrize("target", ["eager", "compile", "onnxruntime"])
def test_buffers_that_a_call_changes_are_left_as_found(target: str) -> None:
    model = Averaging()
    mean = model.mean
    assert target_latencies({"a": model}, torch.rand(2, 4), target, seconds=0.0)["a"] > 0
    assert model.mean is mean
    assert not mean.any()


def test_from_the_command_line(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rf.export, "target_latencies", lambda models, example, target, batch: dict.fromkeys(models, float(batch))
    )
    torch.manual_seed(0)
    rf.zoo.model("digits-cnn")
    weights = tmp_path / "w.safetensors"
    from safetensors.torch import save_file

    save_file(rf.zoo.model("digits-cnn").state_dict(), weights)
    asked = ["evaluate", "digits-cnn", "--weights", str(weights), "--target", "onnxruntime", "--batch", "4"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["target"]
    assert told.pop("eager_ms") > 0
    assert told == {"name": "onnxruntime", "batch": 4, "ms": {"model": 4.0}}
    said = CliRunner().invoke(app, asked).stdout
    assert "onnxruntime  4.000 ms at batch 4" in said
    times = [line.split("ms at ")[1] for line in said.splitlines() if line.startswith("latency")]
    assert times == ["batch 1", "batch 4"]  # torch at the batch of the target, too
