"""An encoder and a decoder, whose texts are padded in their own ways: padding of each counts nowhere, and only it."""

import pytest
import torch
from networks import network
from torch import nn

import rankfold as rf
from rankfold.adapt.extraction.metric import metrics
from rankfold.compress.repair.blocks import blocks_off
from rankfold.compress.statistics import calibrate
from rankfold.objectives.answer import unpadded
from rankfold.observe.halves import halves
from rankfold.sites import sites

LENGTH, READ, WRITTEN = 10, 3, 7  # both are padded: what counts of what is read, and of the answers
KINDS = ("labels", "labels and inputs", "a mask and inputs", "a mask")


def two_texts(kind: str, noise: int = 0):
    """T5 and a batch whose halves are equally long, with ``noise`` in what counts nowhere."""
    model, _ = network("t5")
    g = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(1, 60, (2, 8, LENGTH), generator=g)
    mask, kept = (torch.arange(LENGTH).expand(8, -1) < length for length in (READ, WRITTEN))
    ids = torch.where(mask, ids, noise)
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    marked = labels.masked_fill(~kept, -100)
    if kind == "labels":
        return model.eval(), batch | {"labels": marked}
    fed = torch.where(kept, model._shift_right(labels), noise)
    if kind == "labels and inputs":
        return model.eval(), batch | {"labels": marked, "decoder_input_ids": fed}
    batch |= {"decoder_input_ids": fed, "decoder_attention_mask": kept.long()}
    return model.eval(), batch | ({"labels": labels} if kind == "a mask and inputs" else {})


def reads(name: str) -> bool:
    return name.startswith("encoder.") or name.endswith(("EncDecAttention.k", "EncDecAttention.v"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_counts_the_tokens_of_its_half(kind):
    model, batch = two_texts(kind)
    found = sites(model)
    known = calibrate(model, [batch], found, metric_samples=0).sites
    counts = {name: int(each.moments.count) for name, each in known.items() if "relative" not in name}
    assert counts == {name: 8 * (READ if reads(name) else WRITTEN) for name in counts}
    assert (sum(map(reads, counts)), len(counts)) == (8, 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [rf.CausalLanguageModel(shift=False), rf.TokenClassification(), rf.Teacher()])
def test_answers_are_those_of_the_decoder(kind, objective):
    model, batch = two_texts(kind)
    with torch.no_grad():
        output = model(**batch | ({"labels": batch["labels"].clamp_min(0)} if "labels" in batch else {}))
        (answer,) = objective.answers(output, batch)
    assert answer.counted.tolist() == [[place < WRITTEN for place in range(LENGTH)]] * 8
    assert objective.distances(output, output, batch)[1] == 8 * WRITTEN


def test_a_decoder_that_is_fed_nothing_of_its_own_reads_what_the_encoder_does():
    from transformers.modeling_outputs import Seq2SeqModelOutput

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    output = Seq2SeqModelOutput(last_hidden_state=torch.randn(2, 3, 4))
    (answer,) = rf.Teacher().answers(output, {"input_ids": mask, "attention_mask": mask})
    assert torch.equal(answer.counted, mask.bool())
    vectors = rf.Embedding().vectors(output, {"attention_mask": mask, "decoder_attention_mask": 1 - mask})
    torch.testing.assert_close(vectors, torch.stack([states[bad:].mean(0) for states, bad in zip(output[0], (2, 1))]))


def test_what_is_not_known_of_a_decoder_is_not_masked_by_the_encoder():
    _, batch = two_texts("labels and inputs")
    values = torch.zeros(8, LENGTH, 4)
    assert unpadded(values, batch) is None
    assert [int(unpadded(values, batch, half).sum()) for half in (False, True)] == [8 * READ, 8 * WRITTEN]


@pytest.mark.parametrize("kind", ["labels", "a mask"])
def test_layers_are_fitted_one_after_another_to_the_tokens_of_their_half(kind):
    plans = []
    for noise in (0, 59):
        model, batch = two_texts(kind, noise)
        names = [site.name for site in sites(model).reducible if site.kind == "Linear" and site.name != "lm_head"]
        ranks = rf.Ranks(dict.fromkeys(names, 4))
        given = {"objective": "teacher", "calibration": rf.Calibration(batch_size=8)}
        plans.append(rf.plan(model, ranks, rf.Sequential(one_shot=False), [batch] * 4, **given))
    for name, fitted in plans[0].factors.items():
        for a, b in zip(fitted.factors.parts, plans[1].factors[name].factors.parts, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_compared_at_the_tokens_of_their_half(kind):
    model, batch = two_texts(kind)
    names = ("encoder.block.0", "decoder.block.0")
    known = halves(model, batch, names)
    assert [known.decodes(name) for name in (*names, "elsewhere")] == [False, True, None]
    for name, length in zip(names, (READ, WRITTEN), strict=True):
        wanted = torch.ones(8, LENGTH, 4)
        given = wanted.clone()
        given[:, length:] = 9.0  # padding
        given[:, length - 1] = 2.0
        assert float(blocks_off({name: [given]}, {name: [wanted]}, batch, known)) == pytest.approx(1 / length)


class Shared(nn.Module):
    """One layer for what is read and for what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(60, 8), nn.Linear(8, 8), nn.Linear(8, 60)

    def forward(self, input_ids, decoder_input_ids, attention_mask=None):
        read = self.mix(self.embed(input_ids)) * attention_mask[..., None]
        return self.head(self.mix(self.embed(decoder_input_ids)) + read.mean(1, keepdim=True))


def test_a_layer_of_both_halves_is_told_call_by_call():
    model, (_, batch) = Shared().eval(), two_texts("labels and inputs")
    known = halves(model, batch, ["mix", "head"])
    assert [known.decodes("mix", call) for call in range(3)] == [False, True, None]
    counts = {name: int(each.moments.count) for name, each in calibrate(model, [batch], sites(model)).sites.items()}
    assert (counts["mix"], counts["head"]) == (8 * (READ + WRITTEN), 8 * WRITTEN)


def test_models_of_one_half_are_not_run_for_it(monkeypatch):
    monkeypatch.setattr("rankfold.observe.halves.forward", None)
    model = nn.Sequential(nn.Linear(3, 3))
    assert calibrate(model, [torch.randn(4, 3)], sites(model)).sites["0"].moments.count == 4


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_an_update_is_measured_by_what_counts_of_either_half(kind):
    found = []
    for noise in (0, 5):
        model, batch = two_texts(kind, noise)
        chosen = tuple(sites(model))
        found.append(metrics(model, [batch], chosen, rf.CausalLanguageModel(shift=False)))
    assert any("encoder" in name for name in found[0])
    for name, known in found[0].items():
        torch.testing.assert_close(known.inputs, found[1][name].inputs, msg=name)
