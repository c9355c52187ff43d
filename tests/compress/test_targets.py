"""A network is timed where it will run: what is timed there computes what the model computes."""

import json

import pytest
import torch
from torch import Tensor, nn
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

    def compiled(model: nn.Module) -> nn.Module:
        model.register_forward_pre_hook(lambda *_: happened.append("called"))
        return model

    def timed(running: object, *_: object, **__: object) -> dict[str, float]:
        happened.append("timed")
        return {}

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(targets, "latencies", timed)
    target_latencies({"a": Named(), "b": Named()}, EXAMPLE, "compile")
    assert happened == ["called", "called", "timed"]

    def fails(model: nn.Module) -> nn.Module:
        raise_it = nn.Identity()
        raise_it.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no compiler\nmore")))
        return raise_it

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ExportError, match=r"torch\.compile fails for this model: RuntimeError: no compiler$"):
        target_latencies({"a": Named()}, {"input": torch.zeros(1)}, "compile")


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
