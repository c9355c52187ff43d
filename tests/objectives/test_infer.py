"""What data and model tell of their objective, and what they do not."""

from types import SimpleNamespace

import pytest
import torch

from rankfold.objectives import Classification, ObjectiveError, infer, objective_named


def whole(high, *shape):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(0))


X = torch.randn(6, 2)
IDS = whole(50, 6, 8) + 1
MASKED = torch.where(torch.arange(8) % 4 == 0, IDS, -100)
SHIFTED = torch.cat([IDS[:, 1:], IDS[:, :1] * 0 - 100], 1)


def logits(*shape):
    return {"logits": torch.randn(*shape)}


class CausalLMOutputWithPast(SimpleNamespace):
    pass


class MoeCausalLMOutputWithPast(CausalLMOutputWithPast):
    pass


TABLE = [
    ("classification", torch.randn(6, 4), (X, whole(4, 6))),
    ("classification", torch.randn(6, 4), (X, whole(4, 6, 1))),
    ("classification", torch.randn(6, 4), {"x": X, "labels": whole(4, 6)}),
    ("classification", (torch.randn(6, 4), X), (X, whole(4, 6))),
    ("classification", torch.randn(6, 4), (X, torch.randn(6, 4).softmax(1))),
    ("classification", torch.randn(6, 4, 9), (X, whole(4, 6, 9))),
    ("segmentation", torch.randn(6, 4, 5, 5), (X, whole(4, 6, 5, 5))),
    ("token-classification", torch.randn(6, 8, 4), (X, whole(4, 6, 8))),
    ("token-classification", logits(6, 8, 4), {"input_ids": IDS, "labels": whole(4, 6, 8)}),
    ("token-classification", logits(6, 8, 8), {"input_ids": IDS, "labels": whole(4, 6, 8)}),
    ("multi-label", torch.randn(6, 4), (X, whole(2, 6, 4))),
    ("multi-label", torch.randn(6, 4), (X, whole(2, 6, 4).float())),
    ("multi-label", torch.randn(6, 4), (X, whole(2, 6, 4).bool())),
    ("multi-label", torch.randn(6, 1), (X, whole(2, 6))),
    ("regression", torch.randn(6, 4), (X, torch.randn(6, 4))),
    ("regression", torch.randn(6, 1), (X, torch.randn(6))),
    ("regression", torch.randn(6), (X, torch.randn(6, 1))),
    ("regression", torch.randn(6, 1), (X, whole(9, 6))),
    ("regression", torch.randn(6, 3, 5, 5), (X, torch.randn(6, 3, 5, 5))),
    ("causal-lm", logits(6, 8, 60), {"input_ids": IDS, "labels": IDS}),
    ("causal-lm", logits(6, 8, 60), {"input_ids": IDS, "labels": IDS.masked_fill(whole(2, 6, 8) == 0, -100)}),
    ("causal-lm", torch.randn(6, 8, 60), (IDS, IDS)),
    ("causal-lm", torch.randn(6, 8, 60), (IDS, SHIFTED)),
    ("causal-lm", CausalLMOutputWithPast(logits=torch.randn(6, 8, 60)), {"input_ids": IDS}),
    ("causal-lm", MoeCausalLMOutputWithPast(logits=torch.randn(6, 8, 60)), {"input_ids": IDS}),
    ("teacher", CausalLMOutputWithPast(logits=torch.randn(6, 12, 60)), {"input_ids": IDS}),  # pictures before the text
    ("teacher", CausalLMOutputWithPast(logits=torch.randn(6, 8, 40)), {"input_ids": IDS}),  # and in their own place
    ("masked-lm", logits(6, 8, 60), {"input_ids": IDS.masked_fill(MASKED > 0, 0), "labels": MASKED}),
    ("teacher", torch.randn(6, 4), X),
    ("teacher", torch.randn(6, 4), (X,)),
    ("teacher", {"last_hidden_state": torch.randn(6, 8, 4)}, {"input_ids": IDS}),
]


@pytest.mark.parametrize("index", range(len(TABLE)))
def test_the_table_of_kinds(index):
    name, output, batch = TABLE[index]
    found = infer(output, batch)
    assert found.objective.name == name
    assert str(found).startswith(f"objective: {name} (")
    if found.objective.labelled:  # and it can be measured by
        figures = found.objective.figures()
        figures.add(output, batch)
        assert figures.result().count > 0


def test_targets_of_which_exactly_one_is_1_may_be_classes():
    classes = torch.eye(4)[whole(4, 6)]
    said = str(infer(torch.randn(6, 4), (X, classes)))
    assert said.startswith(
        "objective: multi-label (targets 0 and 1, one for each output; exactly one of each sample is 1"
    )
    assert "give --objective classification" in said
    pixels = torch.eye(4)[whole(4, 6, 5, 5)].movedim(-1, 1)
    assert "of each position is 1: if that is its class, give --objective segmentation" in str(
        infer(torch.randn(6, 4, 5, 5), (X, pixels.long()))
    )
    two = classes.clone()
    two[0] = 1
    assert "exactly one" not in str(infer(torch.randn(6, 4), (X, two)))
    assert "exactly one" not in str(infer(torch.randn(6, 1), (X, torch.ones(6, 1))))


def test_labels_that_are_shifted_already_are_not_shifted_again():
    output = torch.randn(6, 8, 60)
    ahead, own = infer(output, (IDS, SHIFTED)).objective, infer(output, (IDS, IDS)).objective
    assert (ahead.shift, own.shift) == (False, True)
    assert float(ahead.losses(output, (IDS, SHIFTED))[0]) == pytest.approx(float(own.losses(output, (IDS, IDS))[0]))


@pytest.mark.parametrize(
    ("output", "target", "sentence"),
    [
        (
            torch.randn(6, 5, 5),
            whole(5, 6, 5),
            r"second axis or along the last: say which, with objective=",
        ),
        (torch.randn(6, 5, 5, 5), whole(5, 6, 5, 5), "--objective classification or token-classification"),
        (torch.randn(6, 4), whole(4, 6, 2), r"do not fit .* \(6, 4\): .* --objective package.module:NAME"),
        (torch.randn(6, 4), torch.randn(6), r"give one number for each output; class labels are integers"),
        (
            torch.randn(6, 4, 3),
            torch.randn(6, 4),
            r"rankfold.objective; --objective package.module:NAME\), or 'teacher'",
        ),
        (torch.randn(6, 3, 4), torch.randn(6, 4, 3), "do not fit"),
        (torch.randn(6, 4), torch.ones(6, dtype=torch.complex64), "complex64 have no known meaning: give objective="),
        (torch.randn(6, 4), {"boxes": X}, "type dict have no known meaning: give objective="),
        (CausalLMOutputWithPast(logits=torch.randn(6, 29, 60)), IDS, r"targets of shape \(6, 8\), int64, do not fit"),
        (torch.randn(6, 9, 4), [X] * 9, r"type list have no known meaning: make each target one tensor"),
    ],
)
def test_what_does_not_tell_is_refused_with_the_remedy(output, target, sentence):
    with pytest.raises(ObjectiveError, match=sentence) as caught:
        infer(output, (X, target))
    assert "\n" not in str(caught.value)


def test_the_remedy_for_an_ambiguous_shape_works():
    output, target = torch.randn(6, 5, 5), whole(5, 6, 5)
    along = [float(Classification(axis=axis).losses(output, (X, target))[0]) for axis in (1, -1)]
    assert along[0] == pytest.approx(float(torch.nn.functional.cross_entropy(output, target)))
    assert along[1] == pytest.approx(float(torch.nn.functional.cross_entropy(output.mT, target)))
    assert abs(along[0] - along[1]) > 1e-3


@pytest.mark.parametrize(
    ("name", "output", "target", "sentence"),
    [
        ("classification", torch.randn(6, 4), whole(4, 6) + 1, "label 4 is outside 0 … 3, as the model has 4 outputs"),
        ("classification", torch.randn(6, 4), whole(4, 6) - 1, "label -1 is negative"),
        ("classification", torch.randn(6, 4), whole(4, 6, 3), "do not fit outputs of shape"),
        ("classification", torch.randn(6, 4), torch.randn(6, 4), "must be probabilities of the classes"),
        ("classification", torch.randn(6), whole(4, 6), "do not fit outputs of shape"),
        ("regression", torch.randn(6, 4), torch.randn(6, 3), "give one number for each output"),
        ("multi-label", torch.randn(6, 4), torch.randn(6, 4), "targets must be from 0 to 1, and run from -"),
        ("causal-lm", torch.randn(6, 8, 9), torch.randn(6, 8), r"tokens of shape \(N, length\) .* got \(6, 8\)"),
        ("regression", torch.randn(6, 4), None, "a batch holds no targets"),
        ("masked-lm", torch.randn(6, 8, 60), None, "mask tokens yourself"),
        ("teacher", torch.randn(6, 4), whole(4, 6), "give it as teacher="),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_a_line(name, output, target, sentence):
    batch = (X,) if target is None else (X, target)
    with pytest.raises(ObjectiveError, match=sentence) as caught:
        objective_named(name).figures().add(output, batch)
    assert "\n" not in str(caught.value)


def test_nothing_to_count_and_unknown_names():
    with pytest.raises(ObjectiveError, match="nothing to count"):
        objective_named("classification").figures().result()
    left_out = objective_named("classification").figures()
    left_out.add(torch.randn(2, 3), (X[:2], torch.tensor([-100, -100])))
    with pytest.raises(ObjectiveError, match="every target is marked as left out"):
        left_out.result()
    with pytest.raises(ObjectiveError, match="did you mean regression"):
        objective_named("regresion")
    with pytest.raises(ObjectiveError, match="got a int"):
        objective_named(3)
    with pytest.raises(ObjectiveError, match="differ in shape, 2×3 and 2×4"):
        objective_named("teacher").divergence(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ObjectiveError, match="without floating-point numbers"):
        objective_named("teacher").answers(torch.ones(2, dtype=torch.int64))


def test_a_label_of_ones_own_leaves_positions_out():
    """Segmentation data keep 255 for what is no class; the remedy that the error names works."""
    from rankfold.objectives import Classification
    from rankfold.train import evaluate

    torch.manual_seed(0)
    model, images = torch.nn.Conv2d(3, 5, 1), torch.randn(6, 3, 4, 4)
    labels = torch.randint(0, 5, (6, 4, 4))
    labels[:, 0] = 255
    with pytest.raises(ValueError, match=r"label 255 .* mark such positions: Classification\(ignore=255, areas=True\)"):
        evaluate(model, [(images, labels)], objective="segmentation")
    found = evaluate(model, [(images, labels)], objective=Classification(ignore=255, areas=True))
    plain = torch.where(labels == 255, -100, labels)
    expected = evaluate(model, [(images, plain)], objective="segmentation")
    assert found.count == expected.count == 6 * 12
    assert found.loss == pytest.approx(expected.loss)
    assert [figure.value for figure in found.figures] == pytest.approx([f.value for f in expected.figures])


def test_outputs_that_are_not_looked_at_are_said_with_the_remedy():
    two, batch = (torch.randn(6, 4), torch.randn(6, 2)), (X, whole(4, 6))
    assert str(infer(two, batch)).endswith(
        "of the model's 2 outputs 0 counts, and 1 may change unseen: all count with --objective teacher)"
    )
    named = {"features": torch.randn(6, 7), "logits": torch.randn(6, 4)}
    assert "of the model's 2 outputs logits counts, and features may" in infer(named, batch).why
    assert len(objective_named("teacher").answers(two, batch)) == 2
    for alone in (torch.randn(6, 4), (torch.randn(6, 4),), {"logits": torch.randn(6, 4), "past_key_values": (X,)}):
        assert "unseen" not in infer(alone, batch).why
