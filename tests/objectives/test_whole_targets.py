"""Labels in small dtypes, in which −100, a label that counts nowhere, would be another one."""

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.objectives import CausalLanguageModel, Classification, infer


class Bytes(nn.Module):
    """The next of 256 tokens."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Embedding(256, 8), nn.Linear(8, 256)

    def forward(self, input_ids):
        return self.outer(self.inner(input_ids.long()))


TEXTS = torch.randint(0, 256, (4, 6), generator=torch.Generator().manual_seed(0))
TEXTS[:, 2] = 156  # −100 in eight bits


def test_bytes_are_tokens_and_their_shifted_end_is_none():
    net = Bytes()
    found = [
        rf.evaluate(net, {"input_ids": texts}, objective="causal-lm", teacher=net)
        for texts in (TEXTS, TEXTS.to(torch.uint8))
    ]
    assert found[0].count == 4 * 5
    assert found[1].values == found[0].values
    assert (found[1].loss, found[1].count) == (found[0].loss, found[0].count)
    target = CausalLanguageModel().target({"input_ids": TEXTS.to(torch.uint8)})
    assert target.tolist() == [[*row, -100] for row in TEXTS[:, 1:].tolist()]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_hits_and_losses_count_the_same_labels_in_every_dtype(dtype):
    labels = torch.tensor([3, 100], dtype=dtype) if dtype == torch.int8 else torch.tensor([3, 156], dtype=dtype)
    scores = torch.eye(200)[labels.long()]
    right, counted = Classification().hits(scores, (scores, labels))
    assert (right.tolist(), counted.tolist()) == ([1, 1], [1, 1])
    assert Classification().losses(scores, (scores, labels))[1] == 2
    assert rf.evaluate(nn.Identity(), (scores, labels), objective="classification").count == 2


def test_a_label_of_eight_bits_that_is_no_class_is_refused_beforehand():
    with pytest.raises(rf.ObjectiveError, match="label 156 is outside 0 … 9"):
        Classification().check(torch.zeros(4, 10), torch.tensor([1, 156], dtype=torch.uint8))


def test_labels_that_are_input_bytes_tell_of_a_language_model():
    """Where the one that differs is 156, it was taken for one that counts nowhere."""
    tokens = TEXTS.to(torch.uint8)
    other = tokens.clone()
    other[:, 3] = 156
    for labels, wanted in ((tokens, "causal-lm"), (other, "token-classification")):
        batch = {"input_ids": tokens, "labels": labels}
        assert infer(Bytes()(tokens), batch).objective.name == wanted
