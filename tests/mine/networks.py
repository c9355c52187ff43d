"""Networks and data for the command line; importing this registers the form, the method, the rule and the layer."""

import torch
from torch import nn

import rankfold as rf
from mine import budget, form, method, objectives, rule  # noqa: F401
from mine.layer import Mix


def regression() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), Mix(32, 24), nn.Tanh(), nn.Linear(24, 2))
    recipe = rf.Recipe(epochs=8, batch_size=50, optimizer="adam", learning_rate=1e-2)
    rf.fit(model, part(400, 1), None, recipe)
    return model.eval()


regression.example_input = torch.zeros(1, 8)


def part(count, seed):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, torch.sin(x @ torch.randn(8, 2, generator=torch.Generator().manual_seed(9)) / 4)


def data():
    return part(200, 1), part(60, 2)


data.objective = objectives.WORST
