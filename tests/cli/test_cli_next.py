"""The commands that a verb prints at its end work as they are printed, whatever the names of files are."""

from __future__ import annotations

import shlex

import pytest
from commands import rankfold

ASKED = "data: digits\nepochs: 1\nbatch_size: 256\nout: my run/a\n"


def _next(here, config: str) -> list[str]:
    (here / "run.yaml").write_text(ASKED + config)
    result = rankfold("train", "run.yaml")
    assert result.exit_code == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("next: "))
    return shlex.split(line)[2:]


@pytest.mark.parametrize("objective", ["classification", None])
def test_the_run_is_compressed_by_what_it_was_trained_for(objective, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = _next(tmp_path, "model: digits-cnn\n" + (f"objective: {objective}\n" if objective else ""))
    assert words == [
        "compress", "digits-cnn", "--weights", "my run/a/model.safetensors", "--data", "digits",
        *(["--objective", objective] if objective else []), "--budget", "params=0.5", "-o", "small",
    ]  # fmt: skip


def test_factors_of_a_network_of_ones_own_are_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nextnet.py").write_text(
        "from torch import nn, zeros\n\n\ndef net():\n"
        "    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))\n"
        "    made.example_input = zeros(1, 1, 8, 8)\n    return made\n"
    )
    words = _next(tmp_path, "model: nextnet:net\ndlrt: {rank: 4}\n")
    assert words[:2] == ["export", "my run/a/small"]
    result = rankfold(*words)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "small.onnx").is_file()
