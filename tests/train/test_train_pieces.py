"""Recipe, schedule, augmentation, evaluation: the pieces of training, each against an oracle."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from rankfold.objectives import Classification, Evaluation, Figure
from rankfold.train import Augment, Distill, Epoch, History, Plateau, Recipe, Relax, TrainingError, evaluate
from rankfold.train.augment import augment
from rankfold.train.breakdown import at_chance, breakdown, vanished
from rankfold.train.feed import samples
from rankfold.train.fit import loss_parts
from rankfold.train.step.schedule import plateau_factor, rate_factor


def test_recipe_round_trips_through_json():
    recipe = Recipe(
        epochs=3, augment=Augment(2, False), distill=Distill(2.0, 0.5), ema=0.9, clip_norm=1.0, precision="auto"
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.without_teacher() == replace(recipe, distill=None)
    recipe = Recipe(schedule="plateau", plateau=Plateau(factor=0.5, patience=3), relax=Relax(0.6, 0.1))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_recipes_say_how_their_optimizer_decays():
    assert [Recipe(optimizer=name).decay for name in ("sgd", "adam", "adamw")] == ["coupled", "coupled", "decoupled"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("optimizer", "lion"),
        ("schedule", "linear"),
        ("precision", "float16"),
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("momentum", 1.0),
        ("momentum", 0.0),
        ("weight_decay", -1e-4),
        ("warmup", 1.0),
        ("label_smoothing", 1.0),
        ("ema", 1.0),
        ("clip_norm", 0.0),
        ("seed", -1),
    ],
)
def test_recipe_refuses_values_out_of_range_by_name(key, value):
    with pytest.raises(ValueError, match="nesterov" if (key, value) == ("momentum", 0.0) else key):
        Recipe(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        *(
            (key, text, "True or False")
            for key in ("nesterov", "decay_vectors")
            for text in ("no", "false", 0, 1, None)
        ),
        *(
            (key, value, "a .*number")
            for key in ("learning_rate", "momentum", "weight_decay", "warmup", "label_smoothing", "ema", "clip_norm")
            for value in ("1e-3", True, [0.1])
        ),
        *((key, "2", "a whole number") for key in ("epochs", "batch_size", "seed")),
        *((key, ["sgd"], "one of") for key in ("optimizer", "schedule", "precision")),
        ("learning_rate", None, "a number"),
        ("augment", True, r"None or an rankfold\.train\.Augment"),
        ("augment", {"flip": True}, "Augment"),
        ("distill", 0.9, r"None or a rankfold\.train\.Distill"),
        ("plateau", {"factor": 0.1}, "Plateau"),
        ("relax", 0.5, "Relax"),
    ],
)
def test_a_value_of_another_type_is_refused_in_a_sentence(key, value, wanted):
    with pytest.raises(ValueError, match=rf"^recipe: {key} must be .*{wanted}.*, got ") as error:
        Recipe(**{key: value})
    assert "\n" not in str(error.value)
    if not isinstance(value, dict):  # from a file it is a part
        with pytest.raises(ValueError, match=rf"^recipe: {key} must be"):
            Recipe.from_dict({key: value})


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (Augment, "crop_padding", 2.5), (Augment, "crop_padding", "4"), (Augment, "flip", "no"),
        (Distill, "temperature", "4"), (Distill, "weight", "1"), (Distill, "weight", True), (Plateau, "factor", "0.1"),
        (Plateau, "patience", "3"), (Plateau, "threshold", "0"), (Relax, "after", "0.5"), (Relax, "factor", None),
    ],
)  # fmt: skip
def test_so_is_one_in_a_part_of_a_recipe(part, key, value):
    with pytest.raises(ValueError, match=rf"^recipe: {part.__name__}\.{key} must be .*, got "):
        part(**{key: value})


def test_numbers_of_numpy_are_numbers():
    assert (
        Recipe(learning_rate=np.float64(0.1), weight_decay=np.float32(0.5), nesterov=False, momentum=0).learning_rate
        == 0.1
    )


def test_recipe_refuses_unknown_keys():
    with pytest.raises(ValueError, match="there is no lr"):
        Recipe.from_dict({"lr": 0.1})
    with pytest.raises(ValueError, match=r"there is no distill\.alpha"):
        Recipe.from_dict({"distill": {"alpha": 0.1}})
    with pytest.raises(ValueError, match=r"Distill\.weight"):
        Distill(weight=0.0)
    with pytest.raises(ValueError, match="crop_padding"):
        Augment(crop_padding=-1)
    with pytest.raises(ValueError, match=r"Plateau\.patience"):
        Plateau(patience=-1)
    with pytest.raises(ValueError, match="plateau must be left out where the schedule is cosine"):
        Recipe(plateau=Plateau())


@given(
    schedule=st.sampled_from(["cosine", "one-cycle", "step", "constant", "plateau"]),
    total=st.integers(1, 400),
    warmup=st.floats(0, 0.9),
)
def test_schedule_rises_to_the_peak_and_never_again(schedule, total, warmup):
    factors = [rate_factor(schedule, step, total, warmup) for step in range(total)]
    top = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert all(a < b for a, b in pairwise(factors[: top + 1]))
    assert all(a >= b for a, b in pairwise(factors[top:]))


def test_schedule_matches_torch():
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert rate_factor("cosine", step, 50, 0.0) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rate_factor("step", step, 8, 0.0) for step in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [rate_factor("one-cycle", step, 4, 0.0) for step in range(4)] == [1, 0.75, 0.5, 0.25]


@given(
    losses=st.lists(st.sampled_from([1.0, 0.9, 0.5, 0.49999, float("nan")]), max_size=40),
    factor=st.sampled_from([0.1, 0.5]),
    patience=st.integers(0, 4),
)
def test_plateau_is_a_function_of_the_losses_as_torch_steps_through_them(losses, factor, patience):
    def stepwise(patience):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
        for loss in losses:
            scheduler.step(loss)
        return optimizer.param_groups[0]["lr"] / 0.3

    found = plateau_factor(losses, Plateau(factor, patience))
    if found > 1e-6:  # torch stops where a step would be below 1e-8, an absolute number
        assert found == pytest.approx(stepwise(patience))
    if losses == [1.0] * (patience + 2):
        assert found != pytest.approx(stepwise(patience + 1))  # waiting an epoch too long would be seen


def test_plateau_falls_after_its_patience_and_not_before():
    how = Plateau(factor=0.5, patience=2)
    assert [plateau_factor([1.0] * count, how) for count in range(9)] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_chance_is_the_share_of_the_most_frequent_label():
    labels = torch.tensor([0] * 60 + [1] * 40)
    model = nn.Linear(3, 2)
    start = evaluate(model, (torch.randn(100, 3), labels), batch_size=7)
    assert (start.chance, start.count) == (0.6, 100)
    assert at_chance(_accuracy(0.6), start)
    assert at_chance(_accuracy(0.69), start)
    assert not at_chance(_accuracy(0.71), start)  # 0.6 + 2 · √(0.24 / 100) = 0.698
    assert not at_chance(_accuracy(0.6), _scored(0.6, 1.0, 100))  # of an old checkpoint: not counted, not judged


def test_chance_of_a_regression_is_the_mean_of_its_targets():
    inputs = torch.randn(50, 2)
    start = evaluate(nn.Linear(2, 1), (inputs, inputs.sum(1, keepdim=True)))
    assert start.chance == 0.0
    assert at_chance(Figure("r2", -0.1), start)
    assert not at_chance(Figure("r2", 0.1), start)


def _accuracy(value):
    return Figure("accuracy", value, True, "fraction")


def _scored(accuracy, loss=1.0, count=1000, chance=None):
    return Evaluation((_accuracy(accuracy),), loss, count, chance, "classification")


def _epochs(*accuracies):
    return [
        Epoch(number, 1.0, (_accuracy(0.5),), None if accuracy is None else _scored(accuracy), 0.1, 1.0)
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def test_an_epoch_is_a_line_of_figures_and_comes_back_from_a_checkpoint():
    epoch = _epochs(0.75)[0]
    assert epoch.to_dict() == {
        "epoch": 1,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "validation_loss": 1.0,
        "validation_accuracy": 0.75,
        "learning_rate": 0.1,
        "seconds": 1.0,
    }
    assert Epoch.from_state(json.loads(json.dumps(epoch.state()))) == epoch
    earlier = Epoch.from_state(epoch.to_dict())  # as the first release wrote it
    assert earlier.to_dict() == epoch.to_dict()
    assert _epochs(None)[0].to_dict()["validation_accuracy"] is None


def test_a_history_shows_the_figure_of_its_best_epoch():
    history = History(_scored(0.1), tuple(_epochs(0.5, 0.75)), 2, None, 0)
    assert repr(history) == "History(2 epochs, best_epoch=2, validation accuracy 75.00 %)"
    assert "best_epoch=0, validation accuracy 10.00 %, with warning)" in repr(
        replace(history, best_epoch=0, warning="w")
    )
    assert "best_epoch=1, train loss 1)" in repr(History(None, tuple(_epochs(None)), 1, None, 0))


def test_breakdown_is_told_and_only_that():
    start, model = _scored(0.1, 2.3, 1000, 0.11), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert breakdown(model, start, _epochs(0.1, 0.5), 2) is None
    assert breakdown(model, None, _epochs(None, None), 2) is None
    said = breakdown(model, start, _epochs(0.11, 0.115), 2)
    assert "stays at chance" in said
    assert "11.50 %" in said
    assert "weight_decay" in said
    said = breakdown(model, start, _epochs(0.11, 0.97, 0.11), 2)
    assert "collapsed, and the weights of epoch 2 (97.00 %) are kept" in said
    model[2].weight.data.mul_(1e-6)
    assert vanished(model) == (["2"], 2)
    assert "weights of 1 of 2 layers have gone to zero (2)" in breakdown(model, start, _epochs(0.97), 1)


def test_a_product_vanishes_though_its_factors_do_not():
    from rankfold.induce import factors, overparametrize_

    model = overparametrize_(nn.Sequential(nn.Linear(6, 5)), depth=3)
    for factor in factors(model)["0"]:
        factor.data.mul_(0.05)
    assert all(factor.norm() > 1e-2 for factor in factors(model)["0"])
    assert vanished(model) == (["0"], 1)


def _shifts_and_mirrors(image, padding):
    height, width = image.shape[1:]
    padded = F.pad(image, (padding,) * 4)
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            cut = padded[:, down : down + height, right : right + width]
            yield cut
            yield cut.flip(2)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 4),
    channels=st.integers(1, 3),
    height=st.integers(2, 6),
    width=st.integers(2, 6),
    padding=st.integers(0, 2),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_augmented_images_are_shifts_and_mirrors(count, channels, height, width, padding, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randint(1, 255, (count, channels, height, width), generator=generator).to(dtype)
    result = augment(batch, Augment(padding), generator)
    assert result.shape == batch.shape
    assert result.dtype == dtype
    for image, changed in zip(batch, result):
        assert any(torch.equal(changed, candidate) for candidate in _shifts_and_mirrors(image, padding))


def _distinct(result):
    return len({image.numpy().tobytes() for image in result})


def test_every_sample_draws_its_own_shift():
    batch = torch.arange(64.0).view(1, 1, 8, 8).expand(64, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    assert _distinct(augment(batch, Augment(4), generator)) > 40
    shared = torch.cat([augment(batch[:1], Augment(4), generator)] * 64)
    assert _distinct(shared) == 1  # what a shift drawn once for the batch would look like
    torch.testing.assert_close(augment(batch, Augment(0, flip=False), generator), batch)
    again = [augment(batch, Augment(4), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


def test_augment_refuses_what_is_no_image():
    with pytest.raises(ValueError, match="augment=None"):
        augment(torch.zeros(2, 3), Augment(), torch.Generator())


def test_distillation_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0])
    p, q = torch.softmax(taught / 3, 1), torch.softmax(logits / 3, 1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.25 * F.cross_entropy(logits, target) + 0.75 * 9 * divergence

    def loss(logits, taught):
        parts = loss_parts(Classification(), logits, (None, target), taught, Recipe(distill=Distill(3.0, 0.75)))
        return sum(part.weight * part.loss for part in parts)

    torch.testing.assert_close(loss(logits, taught), expected)
    assert abs(loss(taught, logits) - expected) > 1e-3


class _Wrapped(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 4), kind

    def forward(self, x):
        logits = self.layer(x)
        return {"tuple": (logits, x), "dict": {"logits": logits}, "tensor": logits}[self.kind]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
@pytest.mark.parametrize("form", ["pair", "dataset", "loader", "batches"])
def test_evaluation_is_the_same_for_every_kind_of_output_and_data(kind, form):
    torch.manual_seed(0)
    model = _Wrapped(kind).train()
    inputs, labels = torch.randn(11, 3), torch.randint(0, 4, (11,))
    logits = model.layer(inputs)
    dataset = torch.utils.data.TensorDataset(inputs, labels)
    data = {
        "pair": (inputs, labels),
        "dataset": torch.utils.data.Subset(dataset, range(11)),
        "loader": torch.utils.data.DataLoader(dataset, batch_size=4),
        "batches": [(inputs[:7], labels[:7]), (inputs[7:], labels[7:])],
    }[form]
    result = evaluate(model, data, batch_size=4)
    assert result.count == 11
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert model.training


def test_evaluation_refuses_bad_data_by_role():
    model, inputs = _Wrapped("tensor"), torch.randn(3, 3)
    bad = {
        "empty": (inputs[:0], torch.zeros(0, dtype=torch.int64)),
        "outside 0": (inputs, torch.tensor([0, 4, 1])),
        "negative": (inputs, torch.tensor([0, -1, 1])),
        "2 labels": (inputs, torch.tensor([0, 1])),
        "integers": (inputs, torch.tensor([0.0, 1.0, 2.0])),
        "give it as teacher=": [inputs],
        "not a int": 3,
        "it is empty": iter([]),
        "do not fit": (inputs, torch.zeros(3, 2, dtype=torch.int64)),
    }
    for reason, data in bad.items():
        with pytest.raises(TrainingError, match=f"held-out data.*{reason}"):
            evaluate(model, data, role="held-out")


def test_evaluation_of_a_model_that_views_its_channels():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), _View(), nn.Linear(32, 4))
    data = (torch.randn(5, 3, 4, 4), torch.randint(0, 4, (5,)))
    assert evaluate(model, data).count == 5


class _View(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(3, 1))


def test_samples_are_counted_and_not_batches_or_members_of_a_pair():
    x, y = torch.zeros(50, 3), torch.zeros(50)
    data, some = TensorDataset(x, y), WeightedRandomSampler(torch.ones(50), 20)
    batches = BatchSampler(some, 8, False)
    for held in (x, (x, y), data, [(x[:30], y[:30]), (x[30:], y[30:])], {"input": x, "labels": y}):
        assert samples(held) == 50
    assert samples(DataLoader(data, batch_size=8)) == 50
    assert samples(DataLoader(data, batch_size=8, drop_last=True)) == 48
    assert samples(DataLoader(data, batch_size=8, sampler=some)) == 20
    assert samples(DataLoader(data, batch_sampler=batches)) == 20
    for unknown in (Stream(), DataLoader(Stream()), DataLoader(data, batch_sampler=[[0, 1], [2]]), iter([x])):
        assert samples(unknown) is None
