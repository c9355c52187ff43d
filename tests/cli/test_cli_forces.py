"""A network that takes gradients inside its forward, as a field of forces does, through the commands."""

import sys

import pytest
from commands import rankfold, succeeded

FIELD = """
import torch
from torch import nn

class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 1)
        self.register_buffer("centers", torch.linspace(0, 4, 16))

    def forward(self, places):
        with torch.enable_grad():
            places = places.detach().requires_grad_()
            apart = (places[:, :, None] - places[:, None] + 1e-6).square().sum(-1)
            hidden = torch.tanh(self.first(torch.exp(-((apart[..., None] - self.centers) ** 2))))
            energy = self.out(torch.tanh(self.second(hidden))).sum((1, 2, 3))
            (slope,) = torch.autograd.grad(energy.sum(), places)
        return {"energy": energy.detach()[:, None], "forces": -slope}

def make():
    torch.manual_seed(0)
    return Field()

def data():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, 4, 3, generator=generator) for count in (64, 32, 32))
"""


@pytest.fixture
def compressed(tmp_path, monkeypatch):
    (tmp_path / "field.py").write_text(FIELD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "field", raising=False)
    succeeded("compress", "field.py:make", "--data", "field.py:data", "--budget", "flops=0.6", "-o", "small")
    return ["--model", "field.py:make", "--data", "field.py:data"]


def test_it_is_compressed_and_sliced(compressed):
    result = succeeded("slice", "small", *compressed, "--budget", "flops=0.5")
    assert set(result["validation_change"]) == {"before", "after"}  # beside the change that is predicted
    assert result["change"] is None or isinstance(result["change"], float)
    told = rankfold("slice", "small", *compressed, "--budget", "flops=0.5")
    assert told.exit_code == 0, told.output
    assert "validation change: " in told.stdout


def test_tuning_says_that_it_needs_gradients(compressed):
    asked = ("compress", "field.py:make", "--data", "field.py:data", "--budget", "flops=0.6", "--tune", "4")
    told = rankfold(*asked, "-o", "tuned")
    assert told.exit_code == 1
    (line,) = [text for text in told.stderr.splitlines() if text.startswith("error: ")]
    assert "tuning needs outputs that can be differentiated" in line
    assert "leave tuning out" in line
