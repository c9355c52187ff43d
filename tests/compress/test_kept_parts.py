"""What an interrupted measurement has left is read back, and measured again where its parts do not fit one another."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.compress.layerwise.curves import measured as kept_of
from rankfold.compress.layerwise.curves import read_part, write_part
from rankfold.run.disk.container import metadata
from rankfold.sites import sites

KEPT = ("errors|", "levels|", "forecast|", "relative|")


@pytest.fixture
def part(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 6)), torch.randn(64, 9)
    known = rf.profile(model, data)
    found = sites(model)
    file = tmp_path / "part.safetensors"
    made = SimpleNamespace(candidates=known.candidates, unsolved={}, count=0, weighed=0)
    write_part(file, kept_of(found, made, None, let_go=True))
    return file, found


@pytest.mark.parametrize("kind", KEPT)
def test_a_part_whose_pieces_do_not_fit_is_measured_again(part, kind):
    file, found = part
    whole = read_part(file, found)
    assert whole is not None
    assert whole.candidates["0"]
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith(kind))
    note = {key: value for key, value in metadata(file.read_bytes()).items() if key != "rankfold.sha256"}
    save_file(tensors | {name: tensors[name][:2].clone()}, file, note)
    assert read_part(file, found) is None
