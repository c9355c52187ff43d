"""Networks whose samples, outputs or last call are other than those of most: measured and forecast as those are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.batches import batches_of, size_of
from rankfold.batches.written import WrittenWarning
from rankfold.compress.layerwise.rounds import divergence
from rankfold.objectives.moved import Moved


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 8)

    def features(self, x: Tensor) -> Tensor:
        """A vector for each sequence (N, length, 6)."""
        return self.last(torch.tanh(self.first(x))).mean(1)


class Pairs(Body):
    """Each sample beside each other one, as CLIP has it."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.features(x)
        return {"logits": found @ found.mT, "features": found}


class Graphs(Body):
    """Nodes (N, 6) of several graphs, whose edges name nodes; an answer for each graph."""

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        found = torch.tanh(self.first(x))
        heard = torch.zeros_like(found).index_add(0, edges[1], found[edges[0]])
        return torch.zeros(int(graph.max()) + 1, 32).index_add(0, graph, heard) @ self.last.weight.T


class Keeping(Body):
    """Its states stay with it until the next call."""

    def forward(self, x: Tensor) -> Tensor:
        self.states = [self.features(x)]
        return self.states[0]


class Refusing(Body):
    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "use model.train() to train it"
        return self.features(x)


class Painted(Body):
    """Maps (N, 3, 2, 4) whose channels lie far apart, and vary little."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.tensor([20.0, 0.0, -20.0]).reshape(3, 1, 1)
        return self.features(x).reshape(-1, 3, 2, 4) + levels


class Places(Body):
    """One score for each position, as for where an answer begins: batches are as long as their longest text."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))[..., 0]


class Drawing(Body):
    """It draws while it computes, in eval mode too, as masked and variational autoencoders do."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(x)
        return found + 3 * torch.randn_like(found)


class Rescaling(Body):
    """Halves a weight once after each change of mode, as RWKV does for half precision."""

    halved = False

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if self.halved is self.training:
            self.last.weight.mul_(2 if self.training else 0.5)
            self.halved = not self.training
        return self.features(x)


def graphs(seed: int) -> dict[str, Tensor]:
    edges = torch.randint(20, (2, 60), generator=torch.Generator().manual_seed(seed))
    return {"x": drawn(20, 6, seed=seed), "edges": edges, "graph": torch.arange(20) // 5}


ROWS = [drawn(8, 3, 6, seed=seed) for seed in range(8)]
CASES: list[tuple[Any, Any]] = [(kind, ROWS) for kind in (Pairs, Keeping, Refusing, Drawing, Painted)]
CASES += [(Places, [x.repeat(1, 1 + place % 3, 1) for place, x in enumerate(ROWS)])]
CASES += [(Pairs, ROWS[:1]), (Graphs, [graphs(seed) for seed in range(24)])]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.filterwarnings("ignore:this network cannot be differentiated")
def test_it_is_measured_and_forecast_as_others_are(case: int) -> None:
    kind, data = CASES[case]
    torch.manual_seed(0)
    model: Any = kind().eval()
    known = rf.profile(model, data)
    plan = known.plan("params=0.9")
    small = rf.apply_(copy.deepcopy(model), plan, known)  # a copy by hand, as the tutorials make it
    lost = rf.evaluate(small, data, objective=Moved(judged=rf.Teacher()), teacher=model).loss
    assert 0 < lost < 0.5
    assert plan.forecast is not None
    assert divergence(model, model, data) == 0
    if kind not in (Refusing, Drawing) and len(data) > 1:
        assert 0.5 < plan.forecast / lost < 2.5


def test_scores_of_the_classes_of_pixels_are_measured_as_they_are_forecast() -> None:
    torch.manual_seed(0)
    model = Painted().eval()
    data = [(x, torch.zeros(8, 2, 4, dtype=torch.long)) for x in ROWS]
    known = rf.profile(model, data)
    assert str(known.objective) == "segmentation"
    plan = known.plan("params=0.9")
    small = rf.apply_(copy.deepcopy(model), plan, known)
    lost = rf.evaluate(small, data, objective=Moved(judged=known.objective), teacher=model).loss
    assert plan.forecast is not None
    assert 0.5 < plan.forecast / lost < 2.5


def test_a_batch_is_cut_only_where_a_part_is_as_the_whole() -> None:
    assert [size_of(batch) for batch in batches_of(ROWS, limit=10)] == [8, 2]
    assert [size_of(batch) for batch in batches_of([graphs(0), graphs(1)], limit=2)] == [20]
    patches = {"ids": torch.zeros(4, 3, dtype=torch.long), "patches": drawn(16, 6), "labels": torch.zeros(4)}
    assert [size_of(batch) for batch in batches_of([patches] * 3, limit=6)] == [4, 4]
    table = {"ids": torch.zeros(4, 3, dtype=torch.long), "table": drawn(1, 6), "scale": torch.tensor(1.0)}
    assert [size_of(batch) for batch in batches_of([table] * 3, limit=6)] == [4, 2]


def test_weights_that_are_computed_at_every_call_are_loaded_beside_the_factors(tmp_path: Any) -> None:
    def network() -> nn.Module:
        with pytest.warns(FutureWarning, match="weight_norm"):
            return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 8)).eval()

    torch.manual_seed(0)
    model, x = network(), drawn(8, 6)
    small = rf.apply_(model, rf.plan(model, rf.Ranks({"2": 3}), data=[x] * 2))
    rf.save(small, rf.plan(network(), rf.Ranks({"2": 3}), "truncate", example=x), tmp_path)
    assert torch.equal(rf.load(tmp_path, network()).model(x), small(x))


def test_a_network_that_writes_into_its_own_weights_is_told() -> None:
    model = Rescaling()
    with pytest.warns(WrittenWarning, match=r"Rescaling writes into its own weights.*\(last\.weight\).*rescale_every"):
        rf.profile(model.train(), ROWS)
    table = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 4))
    rf.profile(table, [torch.arange(5)] * 4)  # as it is meant


class Masking(Body):
    """Scores of as many places as a sample may have, minus infinity where it has none, as GroundingDINO gives them."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places = places

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.features(x)
        scores = torch.full((len(x), self.places), -torch.inf)
        scores[:, :8] = found
        return {"scores": scores, "boxes": found[:, :4].sigmoid()}


def test_infinities_that_stand_for_no_number_count_nowhere():
    data, forecasts = [{"x": drawn(32, 5, 6, seed=seed)} for seed in range(2)], []
    for places in (8, 12):
        torch.manual_seed(0)
        model = Masking(places).eval()
        plan = rf.profile(model, data).plan("params=0.6")
        forecasts.append(plan.forecast)
        small = rf.apply_(copy.deepcopy(model), plan)
        found = rf.evaluate(small, data, objective=rf.Teacher(), teacher=model)
        assert 0 < found.loss < 1
        for asked in (None, rf.Teacher()):
            (told,) = rf.tune_(copy.deepcopy(small), model, data, steps=3, objective=asked)
            assert 0 < told.after <= told.before < 1
    assert forecasts[1] == pytest.approx(forecasts[0], rel=0.3)
    other = copy.deepcopy(model)
    other.places = 13
    with torch.no_grad():
        now, then = (net(data[0]["x"]) for net in (model, other))
        then["scores"] = then["scores"][:, 1:]  # what is masked in one of them alone
        assert rf.Teacher().divergence(now, then).isinf().all()


class RulingOut(nn.Module):
    """Scores of six classes, two of which it never gives: as −inf, or left out."""

    def __init__(self, says: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.says = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 6)), says

    def forward(self, x: Tensor) -> Tensor:
        scores = self.body(x)
        never = torch.tensor([0, 0, 1, 0, 0, 1]).bool()
        return scores.masked_fill(never, -torch.inf) if self.says else scores[:, ~never]


def test_classes_that_are_ruled_out_count_as_if_they_were_not_there() -> None:
    """Forecasts were 0, divergences NaN, and tuning did nothing."""
    x, kind = drawn(256, 12, seed=3), rf.Classification()
    with_them, without = RulingOut(True).eval(), RulingOut(False).eval()
    plans = [rf.plan(model, "params=0.5", data=x, objective=kind) for model in (with_them, without)]
    assert [(e.form, e.rank) for e in plans[0].entries] == [(e.form, e.rank) for e in plans[1].entries]
    assert plans[0].forecast == pytest.approx(plans[1].forecast, rel=0.05)
    small = [rf.apply_(copy.deepcopy(m), rf.plan(m, "params=0.5", "truncate", x)) for m in (with_them, without)]
    small[1].load_state_dict(small[0].state_dict())
    told = [kind.divergence(s(x), m(x), x) for s, m in zip(small, (with_them, without), strict=True)]
    torch.testing.assert_close(*told)
    assert bool((told[0] > 0).any())
    (tuned,) = rf.tune_(small[0], with_them, x, steps=20, objective=kind)
    assert 0 < tuned.after < tuned.before < 1
