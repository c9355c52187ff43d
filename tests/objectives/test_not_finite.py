"""Numbers that are none, and classes that are ruled out, where the outputs of two networks are compared."""

import math

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.train import TrainingError


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Gives(nn.Module):
    """A layer whose outputs are multiplied."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.inner, self.factor = nn.Linear(4, 2), factor

    def forward(self, x):
        return self.inner(x) * self.factor


def test_no_change_is_told_of_outputs_that_are_no_numbers():
    """NaN is neither above 0 nor equal to 0, and was taken for a change of one from outputs without any spread."""
    x, net = draw(64, 4), Gives()
    assert rf.evaluate(net, x, teacher=net).judged.value == 0
    lost = x.clone()
    lost[5] = float("nan")
    with pytest.raises(TrainingError, match="sample 5 holds a value that is not a finite number, so that change is"):
        rf.evaluate(net, lost, teacher=net)
    for pair in ((net, Gives(float("nan"))), (Gives(float("nan")), net)):
        found = rf.evaluate(pair[0], x, teacher=pair[1])
        assert math.isnan(found.judged.value)
        assert math.isnan(found.loss)
    flat = Gives(0.0)  # its outputs have no spread: any other is as far as can be
    nn.init.zeros_(flat.inner.bias)
    assert rf.evaluate(flat, x, teacher=flat).judged.value == 0
    assert rf.evaluate(net, x, teacher=flat).judged.value == 1
    assert math.isnan(rf.evaluate(Gives(float("nan")), x, teacher=flat).judged.value)


class Words(nn.Module):
    """Scores of twelve tokens, of which the last two are ruled out."""

    def __init__(self, seed, out=-torch.inf):
        super().__init__()
        self.out = out
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner, self.outer = nn.Embedding(10, 8), nn.Linear(8, 12)

    def forward(self, input_ids):
        return self.outer(self.inner(input_ids)).index_fill(-1, torch.tensor([10, 11]), self.out)


def test_classes_that_are_ruled_out_do_not_count_in_the_divergence_of_language_models():
    texts = {"input_ids": torch.randint(0, 10, (4, 6), generator=torch.Generator().manual_seed(1))}
    one, other = Words(0), Words(1)
    same = rf.evaluate(one, texts, objective="causal-lm", teacher=one)
    assert (same["kl"], same["agreement"]) == (0, 1)
    found = rf.evaluate(one, texts, objective="causal-lm", teacher=other)["kl"]
    with torch.no_grad():
        now, then = ((m(texts["input_ids"])[:, :-1, :10]).double().log_softmax(-1) for m in (one, other))
    assert found == pytest.approx(float((then.exp() * (then - now)).sum(-1).mean()), rel=1e-5)
    assert found > 0.1


def test_a_figure_beside_the_judging_one_tells_of_a_sample_that_is_no_number():
    mine = rf.objective("mine", loss=lambda out, batch: out.nan_to_num().abs().mean())
    x = draw(20, 4)
    x[7, 2] = float("nan")

    class Two(type(mine)):
        def conclude(self, sums):
            return (*super().conclude(sums)[0], rf.Figure("beside", float("nan"))), None

    both = Two(name="mine", loss=mine.loss)
    with pytest.raises(TrainingError, match=r"sample 7 holds .*, so that beside is none either"):
        rf.evaluate(nn.Linear(4, 1), (x, draw(20, 1)), objective=both)
