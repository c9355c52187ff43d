"""What each of two processes does for test_train_parallel.py; one line of JSON from each."""

import functools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import rankfold as rf
from rankfold.batches import mapped
from rankfold.compress.methods.relu import ActivationAware
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.planner import plan
from rankfold.compress.planning.profile import Calibration
from rankfold.layers import InTraining
from rankfold.run.processes.team import Team, joined
from rankfold.train import Augment, Distill, History, Plateau, Recipe, fit
from rankfold.zoo import load_data

RECIPE = Recipe(
    epochs=2, batch_size=64, learning_rate=0.05, augment=Augment(1), clip_norm=2.0, schedule="plateau",
    plateau=Plateau(0.5, patience=0, threshold=0.9),
)  # fmt: skip


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


def state(model: nn.Module) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in model.state_dict().items()}


def figures(history: History) -> list[list[float]]:
    return [[e.train_loss, e.train_accuracy, e.validation_loss, e.validation_accuracy] for e in history.epochs]


def maps(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and classes of their pixels, of which many are left out, more in some images than in others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 2, 6, 6, generator=g)
    left_out = torch.rand(32, 6, 6, generator=g) < torch.rand(32, 1, 1, generator=g)
    return x, x.cumsum(1).argmax(1).masked_fill(left_out, -100)


def by_objective(kind: str) -> dict:
    """One epoch by an objective whose positions and figures must be summed over the processes."""
    torch.manual_seed(0)
    model, teacher = (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)) for _ in range(2))
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.05, distill=Distill(2.0, 0.5))
    data = maps(1) if kind == "segmentation" else maps(1)[0]
    history = fit(model, data, data, recipe, teacher=teacher)
    epoch = history.epochs[0].to_dict()
    del epoch["seconds"]
    return {"state": state(model), "epoch": epoch}


def at_low_rank(kind: str) -> dict:
    """Two epochs with layers whose parameters others take the place of."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    way = rf.Pufferfish(budget=0.5, warmup=1)
    dlrt = kind in ("dlrt", "factors")
    known = functools.partial(rf.Dlrt, budget=0.5, reach=4, window=5, factors=kind == "factors")
    how = known if dlrt else way.optimizer
    model = rf.dlrt_(model, 12) if dlrt else way.prepare_(model)
    data, recipe = load_data("digits"), Recipe(epochs=3, batch_size=64, learning_rate=0.05, clip_norm=2.0)
    history = fit(model, data.train, data.validation, recipe, optimizer=how)
    ranks = [module.rank for module in model.modules() if isinstance(module, InTraining)]
    rf.fold_(model)
    return {"state": state(model), "ranks": ranks, "losses": [epoch.train_loss for epoch in history.epochs]}


class Failing(torch.utils.data.Dataset):
    """Sample 100 cannot be read by the second process."""

    def __init__(self, data, rank: int) -> None:
        self.data, self.rank = data, rank

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int):
        if index == 100 and self.rank == 1:
            raise OSError("the disk of this machine is gone")
        return self.data[index]


def fitted(distributed: bool) -> Plan:
    """A plan whose factors were fitted layer after layer."""
    model = network().double()
    x = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    how = Calibration(batch_size=8, distributed=distributed)
    return plan(model, "params=0.6", ActivationAware(), list(x.split(8)), calibration=how)


def error_of(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def second_half(team: Team, batch):
    """A wrong `Team.share`: every process takes the same rows."""
    return mapped(batch, lambda x: x[len(x) // 2 :])


def main(directory: Path) -> None:
    data = load_data("digits")
    found = {}
    with joined(torch.device("cpu")) as team:
        model = network(seed=team.rank)  # the first one's weights are everyone's
        history = fit(model, data.train, data.validation, RECIPE)
        found |= {kind: by_objective(kind) for kind in ("segmentation", "teacher")}
        found |= {kind: at_low_rank(kind) for kind in ("dlrt", "factors", "way")}
        found["together"] = {"state": state(model), "figures": figures(history)}
        found["indivisible"] = error_of(
            lambda: fit(network(), data.train, data.validation, replace(RECIPE, batch_size=63))
        )
        found["failing"] = error_of(lambda: fit(network(), Failing(data.train, team.rank), None, _loaded()))
        events = []

        def interrupt(event) -> None:
            events.append(event)
            if event.finished is not None and event.epoch == 1:
                raise ValueError("stopped here")

        found["stopped"] = error_of(
            lambda: fit(network(), data.train, data.validation, RECIPE, directory=directory / "run", progress=interrupt)
        )
        found["events"] = len(events)
        if team.first:
            shutil.copytree(directory / "run", directory / "half")
        model = network(seed=5)
        history = fit(model, data.train, data.validation, RECIPE, directory=directory / "run")
        found["resumed"] = {"state": state(model), "from": history.resumed_from}
        share, Team.share = Team.share, second_half  # type: ignore[method-assign]
        model = network()
        fit(model, data.train, data.validation, RECIPE)
        found["wrong"] = state(model)
        Team.share = share  # type: ignore[method-assign]
        fitted(distributed=True).save(directory / f"plan-{team.rank}.json")
    (directory / f"{team.rank}.json").write_text(json.dumps(found))

    from rankfold.cli.main import main as command

    sys.argv = ["rankfold", "train", str(directory / "run.yaml"), "--json"]
    command()


def _loaded() -> Recipe:
    return replace(RECIPE, augment=None, schedule="constant", plateau=None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
