"""Every objective against torch's own losses, scikit-learn and naive loops; and the laws that hold for all of them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score

from rankfold.objectives import (
    CausalLanguageModel,
    Classification,
    Embedding,
    Evaluation,
    Figure,
    MaskedLanguageModel,
    MultiLabel,
    Objective,
    ObjectiveError,
    Regression,
    Teacher,
    TokenClassification,
    objective,
    objective_named,
    objective_names,
    register,
)

SEEDS = st.integers(0, 2**31)
MINE = objective(
    "mine",
    loss=lambda out, batch: (out - batch[1]).abs().mean(),
    figure=lambda out, batch: (out - batch[1]).abs().amax(1),
    unit="nats",
)


@dataclass(frozen=True)
class Case:
    """One batch of an objective: what the network answers, what another one answers, and the batch."""

    objective: Objective
    output: Any
    taught: Any
    batch: Any

    def part(self, rows: slice) -> tuple[Any, Any, Any]:
        def cut(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: item[rows] for key, item in value.items()}
            return tuple(map(cut, value)) if isinstance(value, tuple) else value[rows]

        return cut(self.output), cut(self.batch), cut(self.taught)


def case(name: str, seed: int, dtype: torch.dtype = torch.float32) -> Case:
    g = torch.Generator().manual_seed(seed)
    n, c, t = (int(torch.randint(low, high, (), generator=g)) for low, high in ((4, 9), (2, 6), (3, 7)))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=g)

    x = draw(n, 2)
    if name == "classification":
        return Case(Classification(), draw(n, c), draw(n, c), (x, whole(c, n)))
    if name == "segmentation":
        labels = whole(c, n, t, t + 1)
        labels[0, 0] = -100
        return Case(objective_named(name), draw(n, c, t, t + 1), draw(n, c, t, t + 1), (x, labels))
    if name == "token-classification":
        labels = whole(c, n, t).masked_fill(whole(3, n, t) == 0, -100)
        labels[0, 0] = 0
        return Case(TokenClassification(), draw(n, t, c), draw(n, t, c), {"input_ids": x, "labels": labels})
    if name in ("causal-lm", "masked-lm"):
        mask = torch.ones(n, t, dtype=torch.int64)
        mask[1:, -1] = 0
        ids = whole(c, n, t)
        labels = ids.masked_fill(mask == 0, -100)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return Case(objective_named(name), {"logits": draw(n, t, c)}, {"logits": draw(n, t, c)}, batch)
    if name == "multi-label":
        return Case(MultiLabel(), draw(n, c), draw(n, c), (x, whole(2, n, c).float()))
    if name == "regression":
        return Case(Regression(), draw(n, c), draw(n, c), (x, draw(n, c).float()))
    if name == "embedding":
        mask = torch.ones(n, t, dtype=torch.int64)
        mask[0, 1:] = 0
        outputs = {"last_hidden_state": draw(n, t, c)}
        return Case(Embedding(), outputs, {"last_hidden_state": draw(n, t, c)}, {"ids": x, "attention_mask": mask})
    if name == "teacher":
        return Case(Teacher(), (draw(n, c), draw(n, t, 2)), (draw(n, c), 100 * draw(n, t, 2)), x)
    return Case(MINE, draw(n, c), draw(n, c), (x, draw(n, c).float()))


ALL = (*objective_names(), "mine")
LABELLED = [name for name in ALL if name not in ("embedding", "teacher")]
CLASSES = ("classification", "segmentation", "token-classification", "causal-lm", "masked-lm")


def summed(c: Case, *parts: slice) -> Evaluation:
    total = c.objective.figures()
    for part in parts:
        one = c.objective.figures()
        one.add(*c.part(part))
        total.merge(one)
    return total.result()


# --- laws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@given(seed=SEEDS)
def test_two_halves_are_the_whole(name, seed):
    c = case(name, seed)
    whole, halves = summed(c, slice(None)), summed(c, slice(0, 2), slice(2, None))
    assert whole.count == halves.count
    assert halves.loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-6)
    assert halves.values == pytest.approx(whole.values, rel=1e-5, abs=1e-6)
    assert Evaluation.from_dict(whole.to_dict()) == whole


def test_a_mean_of_means_is_not_the_whole():
    c = case("classification", 3)
    parts = [summed(c, part).loss for part in (slice(0, 1), slice(1, None))]
    assert abs(sum(parts) / 2 - summed(c, slice(None)).loss) > 1e-3  # what the law above would reject


@pytest.mark.parametrize("name", [name for name in ALL if name != "mine"])
@given(seed=SEEDS)
def test_divergence_is_zero_at_itself_and_positive_elsewhere(name, seed):
    c = case(name, seed)
    found = c.objective.divergence(c.output, c.taught, c.batch)
    assert found.dtype == torch.float64
    assert bool((found > 0).all())
    assert float(c.objective.divergence(c.taught, c.taught, c.batch).max()) < 1e-12
    assert float(c.objective.distance(c.taught, c.taught, c.batch)) == pytest.approx(0, abs=1e-6)
    assert float(c.objective.distance(c.output, c.taught, c.batch)) > 0


@pytest.mark.parametrize("name", ALL)
@given(seed=SEEDS)
def test_a_common_shift_of_the_scores_is_free_along_a_known_class_axis_alone(name, seed):
    c = case(name, seed)

    def shifted(value):
        if isinstance(value, dict):
            return {key: shifted(item) for key, item in value.items()}
        return tuple(map(shifted, value)) if isinstance(value, tuple) else value + 3

    moved = float(c.objective.divergence(shifted(c.taught), c.taught, c.batch).max())
    assert moved < 1e-9 if name in CLASSES else moved > 1e-6


@given(seed=SEEDS)
def test_a_shift_of_one_class_of_pixels_is_not_free(seed):
    c = case("segmentation", seed)
    after = c.taught.clone()
    after[:, 0] += 5
    assert float(c.objective.divergence(after, c.taught, c.batch).min()) > 0.01
    across = c.taught.clone()
    across[..., 0] += 5  # all classes of the first column: nothing that is said changes
    assert float(c.objective.divergence(across, c.taught, c.batch).max()) < 1e-9
    wrong = Classification(axis=-1)  # looks along the width: takes both the other way round
    assert float(wrong.divergence(across, c.taught, c.batch).min()) > 0.01


@pytest.mark.parametrize("name", ALL)
def test_half_precision_outputs_are_measured_in_full(name):
    half, whole = case(name, 7, torch.bfloat16), case(name, 7)
    found, expected = (summed(c, slice(None)) for c in (half, whole))
    assert found.loss == pytest.approx(expected.loss, rel=0.05, abs=0.02)
    if half.objective.labelled:
        assert half.objective.losses(half.output, half.batch)[0].dtype == torch.float32


@pytest.mark.parametrize("name", LABELLED)
@given(seed=SEEDS)
def test_the_loss_of_the_sums_is_the_loss(name, seed):
    c = case(name, seed)
    loss, count = c.objective.losses(c.output, c.batch)
    result = summed(c, slice(None))
    assert result.count == count
    assert result.loss == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in ALL if name != "mine"])
def test_distance_has_gradients_and_does_not_depend_on_how_a_batch_is_cut(name):
    c = case(name, 11)
    scales = c.objective.scales(c.taught, c.batch)
    whole, count = c.objective.distances(c.output, c.taught, c.batch, 2.0, scales)
    total, seen = 0.0, 0
    for part in (slice(0, 1), slice(1, None)):
        out, batch, taught = c.part(part)
        value, size = c.objective.distances(out, taught, batch, 2.0, scales)
        total, seen = total + float(value) * size, seen + size
    assert seen == count
    assert total / seen == pytest.approx(float(whole), rel=1e-4)
    tensor = torch.randn(4, 3, requires_grad=True)
    if name in ("classification", "teacher", "regression"):
        c.objective.distance(tensor, torch.randn(4, 3), (None, None)).backward()
        assert bool(tensor.grad.abs().sum() > 0)


# --- against others ---------------------------------------------------------------------------------------


@given(seed=SEEDS, smoothing=st.sampled_from([0.0, 0.1]))
def test_classification_is_torchs_cross_entropy(seed, smoothing):
    for name in ("classification", "segmentation", "token-classification"):
        c = case(name, seed)
        labels = c.batch["labels"] if isinstance(c.batch, dict) else c.batch[1]
        scores = c.output if name != "token-classification" else c.output.mT
        expected = F.cross_entropy(scores, labels, ignore_index=-100, label_smoothing=smoothing)
        found, count = c.objective.losses(c.output, c.batch, smoothing)
        torch.testing.assert_close(found, expected)
        assert count == int((labels != -100).sum())
        kept = labels != -100
        right = accuracy_score(labels[kept], scores.argmax(1)[kept])
        assert summed(c, slice(None)).accuracy == pytest.approx(right)


@given(seed=SEEDS)
def test_probabilities_as_targets(seed):
    c = case("classification", seed)
    target = c.taught.softmax(1)
    found, _ = c.objective.losses(c.output, (None, target))
    torch.testing.assert_close(found, F.cross_entropy(c.output, target))


@given(seed=SEEDS)
def test_mean_intersection_over_union_is_that_of_a_loop(seed):
    c = case("segmentation", seed)
    given_, labels = c.output.argmax(1), c.batch[1]
    ratios = []
    for k in range(c.output.shape[1]):
        both = sum(int(a == k and b == k) for a, b in zip(given_.flatten(), labels.flatten()) if b != -100)
        either = sum(int(a == k or b == k) for a, b in zip(given_.flatten(), labels.flatten()) if b != -100)
        ratios += [both / either] if either else []
    assert summed(c, slice(None)).judged == Figure("mean_iou", pytest.approx(np.mean(ratios)), True, "fraction")


def test_a_class_that_is_neither_given_nor_right_does_not_count():
    scores = torch.zeros(1, 4, 2, 2)
    scores[:, 0] = 1  # everything is said to be class 0
    figures = objective_named("segmentation").figures()
    figures.add(scores, (scores, torch.tensor([[[0, 0], [0, 1]]])))
    assert figures.result()["mean_iou"] == pytest.approx((3 / 4 + 0) / 2)  # of classes 0 and 1, not of four


@given(seed=SEEDS)
def test_regression_is_that_of_scikit_learn(seed):
    c = case("regression", seed)
    target, result = c.batch[1], summed(c, slice(None))
    true, answers = target.numpy(), c.output.numpy()  # its earlier releases take no tensors
    assert result["r2"] == pytest.approx(r2_score(true, answers, multioutput="variance_weighted"), rel=1e-4)
    assert result["mae"] == pytest.approx(mean_absolute_error(true, answers), rel=1e-5)
    assert result.loss == pytest.approx(F.mse_loss(c.output, target).item(), rel=1e-5)
    assert result["rmse"] == pytest.approx(result.loss**0.5, rel=1e-5)
    hidden = target.clone()
    hidden[0] = math.nan  # what is not known counts nowhere
    rest = Case(c.objective, c.output[1:], None, (None, target[1:]))
    unknown = summed(Case(c.objective, c.output, c.output, (c.batch[0], hidden)), slice(None))
    expected = c.objective.figures()
    expected.add(rest.output, rest.batch)
    assert unknown.values == pytest.approx(expected.result().values, rel=1e-5)


@pytest.mark.parametrize("far", [0.0, 1e6, 1.7e9])
def test_shares_of_variance_do_not_depend_on_where_zero_lies(far):
    """Of targets in float64, whatever the precision of the model: sums of their squares lost what they vary by."""
    g = torch.Generator().manual_seed(0)
    target = far + torch.randn(300, 2, generator=g, dtype=torch.float64)
    given_ = target + 0.3 * torch.randn(300, 2, generator=g, dtype=torch.float64)
    explained, moved = Regression().figures(), Teacher().figures()
    for part in (slice(0, 7), slice(7, 160), slice(160, 300)):
        explained.add(given_[part], (None, target[part]))
        moved.add(given_[part], target[part], target[part])
    true = r2_score(target - far, given_ - far, multioutput="variance_weighted")
    assert explained.result()["r2"] == pytest.approx(true, rel=1e-6)
    if far < 1e9:  # further off a network in float32 gives the same for all samples
        spread = (target - target.mean(0)).square().sum()
        assert moved.result()["change"] == pytest.approx(
            float((given_ - target).square().sum() / spread) ** 0.5, rel=1e-6
        )
    alike = Regression().figures()
    for part in (0.1, 0.1, 0.1):
        alike.add(torch.zeros(3, 1), (None, torch.full((3, 1), far + part, dtype=torch.float64)))
    assert alike.result().judged.name == "rmse"  # no variance to explain


NOT = float("nan")


@pytest.mark.parametrize("name", ["classification", "segmentation", "multi-label", "causal-lm"])
def test_what_is_no_number_is_no_right_answer(name):
    """The likeliest class of NaN was the first one, and its score, which is not above 0, a rightly given no."""
    objective = objective_named(name)
    outputs = torch.full({"segmentation": (1, 3, 2, 2), "causal-lm": (1, 4, 3)}.get(name, (4, 3)), NOT)
    target = {
        "classification": torch.zeros(4, dtype=torch.long), "segmentation": torch.zeros(1, 2, 2, dtype=torch.long),
        "multi-label": torch.zeros(4, 3), "causal-lm": torch.zeros(1, 4, dtype=torch.long),
    }[name]  # fmt: skip
    figures = objective.figures()
    figures.add(outputs, (target if name == "causal-lm" else outputs, target))
    found = figures.result().values
    assert found["accuracy"] == 0
    assert all(found.get(other, 0) == 0 for other in ("f1", "mean_iou"))
    if name == "classification":
        mixed = torch.tensor([[1.0, 0, 0], [NOT, 0, 0], [0, 1, NOT], [0, 0, 1]])
        assert objective.hits(mixed, (mixed, target))[0].tolist() == [1, 0, 0, 0]


@given(seed=SEEDS, smoothing=st.sampled_from([0.0, 0.2]))
def test_multi_label_is_that_of_torch_and_scikit_learn(seed, smoothing):
    c = case("multi-label", seed)
    target = c.batch[1]
    wanted = target * (1 - smoothing) + smoothing / 2
    found, _ = c.objective.losses(c.output, c.batch, smoothing)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(c.output, wanted))
    result = summed(c, slice(None))
    assert result["f1"] == pytest.approx(f1_score(target, c.output > 0, average="micro", zero_division=1.0))
    assert result.accuracy == pytest.approx(((c.output > 0) == (target > 0)).float().mean().item())


@pytest.mark.parametrize("masked", [False, True])
def test_a_causal_language_model_has_its_own_loss(masked):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(40, (5, 9))
    mask = torch.ones_like(ids)
    mask[2:, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    with torch.no_grad():
        output = model(**batch)
    batch["labels"] = labels if masked else ids  # what the mask leaves out counts nowhere, labelled or not
    figures = CausalLanguageModel().figures()
    figures.add(output, batch)
    result = figures.result()
    assert result.loss == pytest.approx(float(output.loss), rel=1e-5)
    assert result.judged.name == "perplexity"
    assert result.judged.value == pytest.approx(math.exp(float(output.loss)), rel=1e-5)
    unshifted = MaskedLanguageModel().losses(output, batch)[0]
    assert abs(float(unshifted) - float(output.loss)) > 1e-3  # position t paired with token t would be seen
    without = CausalLanguageModel().losses(output, {"input_ids": ids, "attention_mask": mask})
    assert float(without[0]) == pytest.approx(float(output.loss), rel=1e-5)
    shifted = ids.new_full(ids.shape, -100)
    shifted[:, :-1] = labels[:, 1:]
    ahead = CausalLanguageModel(shift=False).losses(output, {"input_ids": ids, "labels": shifted})
    assert float(ahead[0]) == pytest.approx(float(output.loss), rel=1e-5)


@pytest.mark.parametrize("labelled", [False, True])
def test_on_which_side_texts_are_padded_does_not_matter(labelled):
    """Every figure, divergence and count is that of the texts alone; a toy that sees the same of a token anywhere."""
    g, lengths = torch.Generator().manual_seed(0), (8, 5, 4, 7)
    table, other = torch.randn(2, 20, 20, generator=g)
    texts = [torch.randint(1, 20, (length,), generator=g) for length in lengths]
    found = []
    for side in ("right", "left"):
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_side=side)
        batch = {"input_ids": ids, "attention_mask": (ids > 0).long()} | ({"labels": ids} if labelled else {})
        objective, output, taught = CausalLanguageModel(), {"logits": table[ids]}, {"logits": other[ids]}
        result = evaluate_one(objective, output, batch, taught)
        value, counted = objective.distances(output, taught, batch)
        loss, tokens = objective.losses(output, batch)
        assert (counted, tokens, result.count) == (sum(lengths), sum(lengths) - 4, sum(lengths) - 4)
        hits, places = objective.hits(output, batch)
        spread = objective.divergence(output, taught, batch)
        found.append(
            [*result.values.values(), float(value), float(loss), *hits.tolist(), *places.tolist(), *spread.tolist()]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    alone = [F.cross_entropy(table[text[:-1]], text[1:], reduction="sum") for text in texts]
    assert found[0][0] == pytest.approx(math.exp(float(sum(alone)) / (sum(lengths) - 4)), rel=1e-5)


def evaluate_one(objective, output, batch, taught):
    figures = objective.figures()
    figures.add(output, batch, taught)
    return figures.result()


@given(seed=SEEDS)
def test_change_is_the_root_of_the_share_of_variance_that_moved(seed):
    g = torch.Generator().manual_seed(seed)
    one, two = torch.randn(20, 3, generator=g), 1e4 * torch.randn(20, 5, generator=g)
    shares = []
    moved = [x + 0.1 * x.std() * torch.randn(x.shape, generator=g) for x in (one, two)]
    for now, then in zip(moved, (one, two)):
        shares.append(float((now - then).square().sum() / (then - then.mean(0)).square().sum()))
    figures = Teacher().figures()
    figures.add(tuple(moved), one, (one, two))
    result = figures.result()
    assert result.judged == Figure("change", pytest.approx(np.mean(shares) ** 0.5, rel=1e-4), False)
    assert result.loss == pytest.approx(np.mean(shares), rel=1e-4)


@given(seed=SEEDS)
def test_neighbours_are_those_of_a_loop(seed):
    g = torch.Generator().manual_seed(seed)
    now, then = torch.randn(12, 3, generator=g), torch.randn(12, 3, generator=g)

    def nearest(rows):
        near = [[-2.0 if i == j else float(F.cosine_similarity(a, b, dim=0)) for j, b in enumerate(rows)]
                for i, a in enumerate(rows)]  # fmt: skip
        return [max(range(12), key=row.__getitem__) for row in near]

    figures = Embedding().figures()
    figures.add(now[:5], now[:5], then[:5])
    figures.add(now[5:], now[5:], then[5:])
    result = figures.result()
    assert result["neighbours"] == pytest.approx(np.mean([a == b for a, b in zip(nearest(now), nearest(then))]))
    assert result["cosine"] == pytest.approx(float(F.cosine_similarity(now, then).mean()), abs=1e-6)


def test_an_embedding_is_the_mean_of_the_tokens_that_count():
    tokens, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = Embedding().vectors({"last_hidden_state": tokens}, {"attention_mask": mask})
    torch.testing.assert_close(found[0], tokens[0, :2].mean(0))
    torch.testing.assert_close(found[1], tokens[1].mean(0))
    assert not torch.allclose(found[0], tokens[0].mean(0))


# --- figures ----------------------------------------------------------------------------------------------


def test_figures_are_written_for_a_person():
    assert str(Figure("accuracy", 0.915, True, "fraction")) == "accuracy 91.50 %"
    assert str(Figure("perplexity", 4.6134, False)) == "perplexity 4.61"
    assert str(Figure("change", 0.0432, False)) == "change 0.0432"
    assert str(Figure("cosine", 0.99961)) == "cosine 0.99961"
    assert str(Figure("gap", math.nan, unit="nats")) == "gap nan"
    assert Figure("accuracy", 0.9, True, "fraction").less(Figure("accuracy", 0.91, True, "fraction")) == "−1.00 points"
    assert Figure("perplexity", 5.0, False).less(Figure("perplexity", 4.5, False)) == "+0.500"


def test_the_better_evaluation_ranks_last():
    def scored(value, loss=1.0, higher=True):
        return Evaluation((Figure("f", value, higher),), loss, 1)

    assert scored(0.9).rank > scored(0.8).rank
    assert scored(2.0, higher=False).rank > scored(3.0, higher=False).rank
    assert scored(0.9, 0.5).rank > scored(0.9, 0.6).rank
    assert scored(0.1, 5.0).rank > scored(0.9, math.nan).rank
    assert scored(0.1).rank > scored(math.nan).rank
    assert Figure("f", 3.0, False).better(Figure("f", 4.0, False)) == 1.0
    assert Figure("f", math.nan).better(Figure("f", 0.0)) == -math.inf


def test_an_evaluation_names_what_it_has():
    result = summed(case("regression", 0), slice(None))
    assert result.judged.name == "r2"
    assert result.chance == 0.0
    with pytest.raises(AttributeError, match="'accuracy' was not measured: there are r2, rmse, mae"):
        _ = result.accuracy
    with pytest.raises(KeyError, match="f1"):
        _ = result["f1"]
    assert Evaluation.from_dict({"accuracy": 0.5, "loss": 1.0, "count": 10, "chance": 0.1}).accuracy == 0.5


# --- one's own --------------------------------------------------------------------------------------------


def test_an_objective_of_ones_own():
    c = case("mine", 2)
    result = summed(c, slice(None))
    worst = (c.output - c.batch[1]).abs()
    assert result.judged == Figure("mine", pytest.approx(worst.amax(1).mean().item()), False, "nats")
    assert result.loss == pytest.approx(worst.mean().item(), rel=1e-5)
    plain = objective("gap", loss=lambda out, batch: out.mean())
    figures = plain.figures()
    figures.add(c.output, c.batch)
    assert figures.result().judged == Figure("gap", pytest.approx(c.output.mean().item(), abs=1e-6), False)
    assert objective_named(plain) is plain
    assert objective_named(register(plain).name) is plain
    first = objective("first", loss=lambda out, batch: out[0].sum(), answer=lambda out: out[0])
    assert len(first.answers((torch.ones(2, 1), torch.ones(2, 2)))) == 1


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ({"loss": lambda out, batch: out}, r"mine: its loss must give one number as a tensor, not \(4, 3\)"),
        ({"loss": lambda out, batch: 1.0}, "mine: its loss must give one number as a tensor, not float"),
        ({"figure": lambda out, batch: out}, r"one number for each sample or their mean, not \(4, 3\)"),
        ({"figure": lambda out, batch: out[0]}, "gives 3 numbers for a batch of 4 samples"),
        ({"figure": lambda out, batch: "good"}, "its figure is not a number"),
    ],
)
def test_what_ones_own_must_not_give_is_said_in_a_line(kind, sentence):
    wrong = objective("mine", **{"loss": lambda out, batch: out.mean()} | kind)
    with pytest.raises(ObjectiveError, match=sentence) as caught:
        wrong.figures().add(torch.ones(4, 3), (torch.ones(4, 2), torch.ones(4)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["loss", "figure", "answer"])
def test_what_ones_own_raises_is_told_in_a_line_with_what_it_was_given(part):
    def mine(output, batch=None):
        return (output["scores"] - torch.ones(3, 5)).mean()

    wrong = objective("mine", **{"loss": lambda out, batch: out["scores"].mean(), part: mine})
    call = wrong.answers if part == "answer" else wrong.figures().add
    with pytest.raises(ObjectiveError) as caught:
        call({"scores": torch.ones(4, 3), "more": torch.ones(4)}, (torch.ones(4, 2), torch.ones(4, 5)))
    assert str(caught.value).startswith(
        f"mine: its {part} failed for targets of shape (4, 5) and outputs of shape (4, 3), (4,): RuntimeError: The size"
    )
    assert "\n" not in str(caught.value)
    assert type(caught.value.__cause__) is RuntimeError


def test_a_figure_is_not_called_loss():
    """Its value stood in metrics.jsonl in place of the loss."""
    with pytest.raises(ObjectiveError, match="its figure would have the name of what training minimises: give it anot"):
        objective("loss", loss=lambda out, batch: out.mean(), figure=lambda out, batch: out.amax(1))
    alone = objective("loss", loss=lambda out, batch: (out - batch[1]).abs().mean())
    figures = alone.figures()
    figures.add(torch.ones(3, 1), (torch.ones(3, 2), torch.zeros(3, 1)))
    assert (figures.result().values, figures.result().loss) == ({"loss": 1.0}, 1.0)
