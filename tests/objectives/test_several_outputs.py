"""Models with several outputs: with targets the main one alone counts, without them each."""

import copy

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.compress.layerwise.rounds import divergence
from rankfold.objectives import MultiLabel, Regression, Teacher

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Two(nn.Module):
    """A head, and one beside it, which may be of another width."""

    def __init__(self, outputs, beside, named=False):
        super().__init__()
        self.main, self.other, self.named = nn.Linear(4, outputs), nn.Linear(4, beside), named

    def forward(self, x):
        main, other = self.main(x), self.other(x)
        return {"aux": other, "logits": main} if self.named else (main, other)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("targets", "name"),
    [(X[:, :1], "regression"), ((X[:, :2] > 0).float(), "multi-label"), ((X[:, 0] > 0).long(), "classification")],
)
def test_a_head_beside_the_one_that_counts_is_not_distilled(targets, name, named):
    outputs = 1 if name == "regression" else 2
    taught, net = (seeded(lambda: Two(outputs, 3, named), seed) for seed in (0, 1))
    before = copy.deepcopy(net)
    recipe = rf.Recipe(epochs=1, batch_size=16, learning_rate=0.05, weight_decay=0.0, distill=rf.Distill())
    rf.fit(net, (X, targets), None, recipe, objective=name, teacher=taught)
    assert torch.equal(net.other.weight, before.other.weight)
    assert not torch.equal(net.main.weight, before.main.weight)
    wide = seeded(lambda: Two(outputs, 7, named))  # whose other head has no place to be taught to
    rf.fit(net, (X, targets), None, recipe, objective=name, teacher=wide)


@pytest.mark.parametrize("objective", [Regression(), MultiLabel()])
def test_numbers_are_compared_in_the_output_that_has_targets(objective):
    one = {"aux": X[:, :3], "logits": X[:, 3:]}
    other = {"aux": X[:, :3] + 1, "logits": X[:, 3:]}
    assert [(each.name, each.values.shape) for each in objective.answers(one)] == [("logits", (64, 1))]
    assert float(objective.divergence(other, one).sum()) == 0
    assert len(objective.scales(one)) == 1
    assert float(Teacher().divergence(other, one).sum()) > 0
    with pytest.raises(rf.ObjectiveError, match="returned a dict without floating-point numbers"):
        objective.answers({"found": torch.arange(3)})


def test_states_without_a_row_for_each_sample_count_by_their_mean():
    texts = [X[:12].reshape(3, 4, 4), X[12:32].reshape(5, 4, 4)]
    net, other = (seeded(lambda: nn.LSTM(4, 6, 2, batch_first=True), seed) for seed in (0, 1))
    total = 0.0
    for text in texts:
        with torch.no_grad():
            now, then = net(text), other(text)
        rows = Teacher().divergence(now, then, (text,))
        states = [Teacher().divergence(a, b).mean() for a, b in zip(now[1], then[1])]
        wanted = (Teacher().divergence(now[0], then[0]) + sum(states)) / 3
        assert rows.tolist() == pytest.approx(wanted.tolist())
        assert torch.equal(rows, Teacher().divergence(now, then))
        total += float(rows.sum())
    assert divergence(other, net, [(text,) for text in texts]) == pytest.approx(total / 8)
