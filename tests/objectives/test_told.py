"""What the first batch happens to hold does not decide what all targets are."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rankfold as rf
from rankfold.compress.planning.profiling import meant
from rankfold.objectives import MultiLabel, ObjectiveError, infer
from rankfold.train import TrainingError
from rankfold.train.evaluation import choose

NAN = float("nan")
RECIPE = rf.Recipe(epochs=2, batch_size=16, learning_rate=0.05)
X = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
YES = (X[:, :3] > 0).float()  # 0 and 1
SHARES = torch.cat([torch.zeros(100, 1), X[100:, :1].sigmoid()])  # of which a first batch is 0 alone


def net(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, outputs))


def with_unknown(seed=0):
    unknown = torch.rand(YES.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    return YES.masked_fill(unknown, NAN)


IN_MEMORY = {
    "pair": lambda y: (X, y),
    "data set": lambda y: TensorDataset(X, y),
    "loader": lambda y: DataLoader(TensorDataset(X, y), 50),
    "batches": lambda y: list(zip(X.split(50), y.split(50), strict=True)),
    "mappings": lambda y: [{"input": a, "labels": b} for a, b in zip(X.split(50), y.split(50), strict=True)],
}


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_labels_of_which_some_are_unknown_are_labels(kind):
    data, model = IN_MEMORY[kind](with_unknown()), net(3)
    before, known, scores = rf.evaluate(model, data), ~with_unknown().isnan(), model(X).detach()
    given = scores > 0
    hits = int((given & (YES > 0) & known).sum())
    both = int((given & known).sum()) + int(((YES > 0) & known).sum())
    assert (before.objective, before.judged.name) == ("multi-label", "f1")
    assert before.judged.value == pytest.approx(2 * hits / both)
    wanted = nn.functional.binary_cross_entropy_with_logits(scores[known], YES[known])
    assert before.loss == pytest.approx(float(wanted), rel=1e-5)
    history = rf.fit(model, data, data, RECIPE)
    assert [figure.name for figure in history.best.validation.figures] == ["f1", "accuracy"]


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_numbers_that_are_0_and_1_in_the_first_batch_alone_are_numbers(kind):
    data = IN_MEMORY[kind](SHARES)
    assert choose(net(1), data, None).objective.name == "regression"
    assert rf.evaluate(net(1), data).judged.name == "r2"
    assert rf.fit(net(1), data, data, RECIPE).best.validation.judged.name == "r2"
    assert meant(net(1), data, None).objective.name == "regression"
    counts = IN_MEMORY[kind](torch.cat([torch.zeros(100, 1), torch.arange(100.0)[:, None]]).long())
    assert choose(net(1), counts, None).objective.name == "regression"


def test_chances_in_the_first_batch_alone_are_no_chances():
    chances = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert choose(net(3), (X, chances), None).objective.name == "classification"
    chances[150:] *= 2
    assert choose(net(3), (X, chances), None).objective.name == "regression"


class Loads(torch.utils.data.Dataset):
    """Comes from somewhere, sample by sample."""

    def __init__(self, y):
        self.y = y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return X[index], self.y[index]


@pytest.mark.parametrize("targets", [SHARES, (5 * SHARES).round().long()], ids=["shares", "counts"])
def test_a_later_batch_that_contradicts_the_first_is_refused_with_the_remedy(targets):
    data = Loads(targets)
    remedy = r"^(train|validation|evaluation) data: the objective was told from the first targets.* objective="
    with pytest.raises(TrainingError, match=remedy) as error:
        rf.evaluate(net(1), data)
    assert "\n" not in str(error.value)
    with pytest.raises(TrainingError, match=remedy):
        rf.fit(net(1), data, None, RECIPE)
    with pytest.raises(TrainingError, match=remedy):
        rf.fit(net(1), (X, (SHARES > 0.5).float()), data, RECIPE)  # what training is told, validation contradicts
    assert rf.evaluate(net(1), data, objective="regression").judged.name == "r2"
    assert rf.evaluate(net(1), Loads(SHARES), objective="multi-label").judged.name == "f1"  # shares, as asked


def test_targets_that_are_all_unknown_do_not_tell():
    y = YES.clone()
    y[:70] = NAN
    assert choose(net(3), (X, y), None).objective.name == "multi-label"
    with pytest.raises(TrainingError, match=r"every target is NaN.* objective="):
        choose(net(3), Loads(y), None)
    with pytest.raises(ObjectiveError, match="every target is NaN"):
        infer(net(3)(X), (X, torch.full((200, 3), NAN)))
    assert rf.evaluate(net(3), Loads(y), objective="regression").judged.name == "r2"


def test_an_objective_that_was_told_is_the_one_that_is_named():
    found = infer(torch.randn(200, 3), (X, YES)).objective
    assert found.told
    assert found == MultiLabel() == rf.objectives.objective_named("multi-label")
    assert repr(found) == repr(MultiLabel())
