"""Scores over a large vocabulary are compared, counted and differentiated with no copies of all of them."""

import pytest
import torch
import torch.nn.functional as F
from living import Living

import rankfold as rf
from rankfold.compress.gradients import Sums
from rankfold.compress.tokens import Drawn
from rankfold.objectives import compare

DRAW = torch.Generator().manual_seed(0)
THEIRS = torch.randn(3, 64, 4000, generator=DRAW).bfloat16()
OURS = (THEIRS + torch.randn(3, 64, 4000, generator=DRAW) / 2).bfloat16()
BATCH = {
    "input_ids": torch.randint(4000, (3, 64), generator=DRAW),
    "attention_mask": (torch.arange(64) < 60).expand(3, -1),
}
OBJECTIVES = [rf.CausalLanguageModel(), rf.Teacher()]


@pytest.fixture(autouse=True)
def _some_at_a_time(monkeypatch):
    """So that what is in work at a time is little beside all."""
    monkeypatch.setattr(compare, "CHUNK", 1 << 14)


def measured(objective, ours, theirs, batch):
    sums = objective.figures()
    sums.add(ours, batch, theirs)
    return sums.result()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize(
    "what", [lambda objective, *given: objective.divergence(given[0], given[1], given[2]), measured],
    ids=["divergence", "figures"],
)  # fmt: skip
def test_little_more_is_held_than_the_scores_of_both_networks(objective, what):
    limit = THEIRS.nbytes * (3 if objective.by_token else 11)  # with those of both networks
    with Living() as living:
        what(objective, OURS, THEIRS, BATCH)
    assert living.most < limit


def test_some_at_a_time_are_what_all_together_are():
    kept = torch.arange(63) < 59  # padding is predicted by nobody
    p, q = (x.double().log_softmax(-1)[:, :-1][:, kept] for x in (THEIRS, OURS))
    kl = (p.exp() * (p - q)).sum(-1)
    after = rf.CausalLanguageModel().divergence(OURS, THEIRS, {"input_ids": BATCH["input_ids"]})
    whole = (THEIRS.double().softmax(-1) * (THEIRS.double().log_softmax(-1) - OURS.double().log_softmax(-1))).sum(-1)
    torch.testing.assert_close(after, whole.mean(1))
    found = measured(rf.CausalLanguageModel(), OURS, THEIRS, BATCH)
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-5)
    targets = BATCH["input_ids"][:, 1:][:, kept]
    assert found.loss == pytest.approx(float(F.nll_loss(q.flatten(0, 1), targets.flatten())), rel=1e-5)
    assert found["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    apart, mean = (OURS.double() - THEIRS.double()).square().sum(-1), THEIRS.double().mean(0)
    spread = (THEIRS.double() - mean).square().sum(-1).mean()
    told = rf.Teacher().divergence(OURS, THEIRS, (BATCH["input_ids"],))
    torch.testing.assert_close(told, apart.mean(1) / spread)


def test_gradients_of_drawn_tokens_take_no_more_than_the_scores_thrice():
    scores = OURS.clone().requires_grad_()
    with Living() as living:
        answers = rf.CausalLanguageModel().answers(scores, BATCH)
        total, counted = Drawn(Sums()).of(answers, 0)
        (slope,) = torch.autograd.grad(total, [scores])
    assert counted == 180
    assert living.most < 3.5 * scores.nbytes
    p = OURS.float().softmax(-1)
    one = (p - slope.float())[BATCH["attention_mask"]]  # the token that was drawn
    torch.testing.assert_close(one.sum(-1), torch.ones(180), rtol=0.02, atol=0.02)
    assert bool((one.amax(-1) > 0.98).all())
    assert not slope[~BATCH["attention_mask"]].any()
