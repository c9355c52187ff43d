"""Every kind of data through evaluation, training and fine-tuning, by every objective, with targets and without."""

import copy
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import network
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import rankfold as rf
from rankfold.batches import LeftOut, arguments, batches_of, forward
from rankfold.objectives import Classification, Embedding, ObjectiveError, Teacher, infer, objective
from rankfold.train import Augment, TrainingError, checkpoint, evaluate, fit

RECIPE = rf.Recipe(epochs=2, batch_size=8, learning_rate=0.02, precision="float32")
DISTILLED = replace(RECIPE, distill=rf.Distill())


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(40, 6)
NUMBERS = X @ draw(6, 3, seed=1)
CLASSES = NUMBERS.argmax(1)


def net(outputs: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs))


class Stream(IterableDataset):
    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def __iter__(self):
        return iter(zip(*self.tensors))


class Indexed(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int):
        return X[index], NUMBERS[index]


LABELLED = {
    "pair": (X, NUMBERS),
    "data set": TensorDataset(X, NUMBERS),
    "indexed": Indexed(),
    "loader": DataLoader(TensorDataset(X, NUMBERS), 8),
    "stream": Stream(X, NUMBERS),
    "loader without length": DataLoader(Stream(X, NUMBERS), 8),
    "batches": list(zip(X.split(8), NUMBERS.split(8))),
    "mappings": [{"input": x, "labels": y, "id": torch.arange(8)} for x, y in zip(X.split(8), NUMBERS.split(8))],
}
UNLABELLED = {
    "tensor": X,
    "data set": TensorDataset(X),
    "loader": DataLoader(TensorDataset(X), 8),
    "batches": list(X.split(8)),
    "stream": Stream(X),
    "tuple of inputs": [((x,),) for x in X.split(8)],
    "mappings": [{"input": x} for x in X.split(8)],
}
ignored = pytest.mark.filterwarnings("ignore::rankfold.batches.LeftOut")


@ignored
@pytest.mark.parametrize("form", LABELLED)
def test_labelled_data_of_every_kind_give_the_same_evaluation_and_train(form):
    data, model = LABELLED[form], net()
    expected = evaluate(model, (X, NUMBERS), objective="regression")
    found = evaluate(model, data, 8)
    assert found.values == pytest.approx(expected.values, rel=1e-5)
    assert found.count == 120
    history = fit(model, data, data, RECIPE)
    assert history.epochs[-1].validation.judged.name == "r2"
    assert history.best is not None
    assert evaluate(model, (X, NUMBERS))["r2"] > expected["r2"]


@pytest.mark.parametrize("form", UNLABELLED)
def test_unlabelled_data_of_every_kind_are_judged_by_the_original(form):
    data, teacher = UNLABELLED[form], net()
    small = rf.apply_(copy.deepcopy(teacher), rf.plan(teacher, "params=0.6", "truncate", example=X[:1]))
    found = evaluate(small, data, 8, teacher=teacher)
    expected = evaluate(small, X, teacher=teacher)
    assert found.values == pytest.approx(expected.values, rel=1e-4)
    assert (found.judged.name, found.count, found.objective) == ("change", 40, "teacher")
    history = rf.finetune(small, (data, data), teacher=teacher, recipe=DISTILLED)
    assert history.start.judged.value == pytest.approx(found.judged.value, rel=1e-5)
    assert history.best is not None
    assert evaluate(small, X, teacher=teacher)["change"] < found["change"]


class Pairs(IterableDataset):
    def __iter__(self):
        return iter([(X[:8], NUMBERS[:8])] * 2)


def test_what_can_be_read_only_once_is_evaluated_and_not_trained_on():
    batches = list(zip(X.split(8), NUMBERS.split(8)))
    assert evaluate(net(), iter(batches)) == evaluate(net(), batches)
    with pytest.raises(TrainingError, match=r"train data: a list_iterator can be read only once.*give list\(it\)"):
        fit(net(), iter(batches), None, RECIPE)
    fit(net(), list(iter(batches)), None, RECIPE)  # the remedy
    with pytest.raises(TrainingError, match="validation data: a list_iterator can be read only once"):
        fit(net(), batches, iter(batches), RECIPE)
    whole = DataLoader(Pairs(), batch_size=None)  # an iterable data set that gives batches
    assert evaluate(net(), whole).count == 48


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x, scale=None):
        return self.layer(x if scale is None else x * scale)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, a, b):
        return self.layer(torch.cat([a, b], 1))


def test_what_a_model_does_not_take_is_left_out_and_said():
    batch = {"x": X, "scale": X * 0 + 2, "id": torch.arange(40), "labels": NUMBERS}
    model = Named()
    with pytest.warns(LeftOut, match="Named.forward takes no argument id: this part of every batch is ignored$"):
        found = forward(model, batch)
    with pytest.warns(LeftOut, match="is ignored; if it is the target, call it labels$"):
        arguments({"x": X, "mask": NUMBERS}, model)
    with pytest.warns(LeftOut, match="no argument mask, id: .* is ignored; if one is the target, call it labels$"):
        arguments(({"x": X, "mask": NUMBERS, "id": X},), model)
    assert torch.equal(found, model(X, X * 0 + 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(arguments({"x": X, "labels": NUMBERS}, model)[1]) == {"x"}
        assert set(arguments({"x": X, "id": X})[1]) == {"x", "id"}  # no model is asked

    class Anything(Named):
        def forward(self, **named):
            return self.layer(named["y"])

    assert set(arguments({"y": X, "id": X}, Anything())[1]) == {"y", "id"}
    with pytest.warns(LeftOut):
        assert set(arguments(batch, nn.DataParallel(model))[1]) == {"x", "scale"}


class AnyNumber(Named):
    def forward(self, *inputs):
        return self.layer(sum(inputs))


def test_inputs_that_are_taken_for_targets_are_told_where_a_model_takes_any_number():
    with pytest.warns(LeftOut, match=r"AnyNumber.forward takes any number of inputs: .* give \(\(a, b\), targets\)"):
        assert len(arguments((X, X), AnyNumber())[0]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(arguments(((X, X),), AnyNumber())[0]) == 2
        assert len(arguments(((X, X), NUMBERS), AnyNumber())[0]) == 2
        assert len(arguments((X, CLASSES), AnyNumber())[0]) == 1
        assert len(arguments((X, X), Named())[0]) == 1


@pytest.mark.parametrize("lengths", [(10, 4), (10, 10)])
def test_a_decoder_is_fed_the_labels_where_a_batch_holds_nothing_else_for_it(lengths):
    model, batch = network("t5")
    labels = batch["input_ids"].flip(1)[:, : lengths[1]].contiguous()
    alone = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"labels": labels}
    given = alone | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
    assert torch.equal(forward(model, alone).logits, model(**alone).logits)
    one, other = (rf.evaluate(model, [each]) for each in (alone, given))
    assert one.objective == "causal-lm"
    assert one.loss == other.loss == pytest.approx(float(model(**alone).loss.detach()))


def test_several_inputs_are_told_apart_from_targets():
    with pytest.raises(
        TypeError,
        match=r"missing a required argument: 'b'\. It was called with a batch of 2: give batches of the form",
    ):
        forward(Two(), (X, X))
    assert evaluate(Two(), [((X, X), CLASSES)]).count == 40  # the remedies
    assert evaluate(Two(), [((X, X),)], teacher=Two()).objective == "teacher"


def test_an_image_is_not_moved_without_its_map():
    images, maps = draw(16, 3, 32, 32), torch.zeros(16, 32, 32, dtype=torch.int64)
    assert rf.finetune_recipe(((images, maps[:, 0, 0]), None)).augment is not None
    assert rf.finetune_recipe((images, images)).augment is not None
    assert rf.finetune_recipe(((images, maps), None)).augment is None
    assert rf.finetune_recipe(((images, images.mean((1, 2, 3))), None)).augment is None
    with pytest.raises(TrainingError, match="augmentation moves images, and not targets"):
        fit(nn.Conv2d(3, 2, 1), (images, maps), None, replace(RECIPE, augment=Augment(4)))


# --- training by each objective ---------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 16), nn.Linear(16, 12)

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(self.embed(input_ids))}


IDS = (torch.arange(12)[:, None] + torch.arange(6)) % 12
KINDS = {
    "classification": (net, (X, CLASSES), "accuracy"),
    "regression": (net, (X, NUMBERS), "r2"),
    "multi-label": (net, (X, (NUMBERS > 0).float()), "f1"),
    "segmentation": (lambda: nn.Conv2d(2, 3, 1), (draw(24, 2, 4, 4), draw(24, 3, 4, 4, seed=2).argmax(1)), "mean_iou"),
    "causal-lm": (Tokens, [{"input_ids": IDS, "labels": IDS}] * 4, "perplexity"),
    "own": (net, (X, NUMBERS), "mean error"),
}


@pytest.mark.parametrize("name", KINDS)
def test_fit_and_finetune_lower_the_loss_of_every_objective(name, tmp_path):
    make, data, judged = KINDS[name]
    asked = None
    if name == "own":
        asked = objective("mean error", loss=lambda out, batch: (out - batch[1]).abs().mean())
    model = make()
    before = evaluate(model, data, objective=asked)
    assert before.judged.name == judged
    history = fit(model, data, data, RECIPE, directory=tmp_path, objective=asked)
    after = evaluate(model, data, objective=asked)
    assert after.loss < before.loss
    assert after.rank > before.rank
    assert history.best.validation.values == pytest.approx(after.values)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line[f"validation_{judged}"] == history.epochs[-1].validation.judged.value
    assert f"train_{judged}" in line
    again = fit(make(), data, data, RECIPE, directory=tmp_path, objective=asked)  # read back from the checkpoint
    assert again.epochs == history.epochs
    assert again.start == history.start
    student = make()
    nn.init.normal_(next(student.parameters()), std=0.3, generator=torch.Generator().manual_seed(5))
    start = evaluate(student, data, objective=Teacher(), teacher=model)
    rf.finetune(student, (data, None), teacher=model, recipe=DISTILLED, objective=asked)
    assert evaluate(student, data, objective=Teacher(), teacher=model)["change"] < start["change"]


def test_a_directory_of_another_objective_is_refused(tmp_path):
    fit(net(), (X, CLASSES), None, RECIPE, directory=tmp_path)
    with pytest.raises(TrainingError, match="with the objective classification and not teacher"):
        fit(net(), (X, CLASSES), None, RECIPE, directory=tmp_path, objective=Teacher(), teacher=net(seed=1))


def test_a_checkpoint_of_the_first_release_goes_on(tmp_path):
    recipe = replace(RECIPE, epochs=3)
    whole = net()
    history = fit(whole, (X, CLASSES), (X, CLASSES), recipe, directory=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(now):
        if now.finished is not None and now.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(net(), (X, CLASSES), (X, CLASSES), recipe, directory=tmp_path / "run", progress=stop)
    saved = checkpoint.load(tmp_path / "run")
    start = saved["start"]
    flat = {"accuracy": start["figures"][0]["value"], "loss": start["loss"], "count": 40, "chance": start["chance"]}
    saved |= {"start": flat, "epochs": [epoch.to_dict() for epoch in history.epochs[: len(saved["epochs"])]]}
    del saved["objective"]
    checkpoint.save(tmp_path / "run", len(saved["epochs"]), saved)
    resumed = net()
    again = fit(resumed, (X, CLASSES), (X, CLASSES), recipe, directory=tmp_path / "run")
    assert again.resumed_from == 2
    assert [e.validation_accuracy for e in again.epochs] == [e.validation_accuracy for e in history.epochs]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_an_embedding_is_learnt_from_its_teacher_alone():
    teacher, student = net(4), net(4, seed=3)
    data = (X, CLASSES)  # which are not looked at
    before = evaluate(student, data, objective=Embedding(), teacher=teacher)
    history = rf.finetune(student, (data, data), teacher=teacher, recipe=DISTILLED, objective="embedding")
    after = evaluate(student, data, objective=Embedding(), teacher=teacher)
    assert after["cosine"] > before["cosine"]
    assert set(after.values) == {"cosine", "neighbours"}
    assert history.epochs[-1].to_dict()["validation_cosine"] == history.epochs[-1].validation["cosine"]


def test_what_is_missing_is_said_before_any_work():
    for words, call in {
        "objective teacher compares outputs.*none is given": lambda: fit(net(), X, None, RECIPE),
        r"evaluation data: teacher: the data have no targets \(labels\), .* give it as teacher=": lambda: evaluate(
            net(), X
        ),
        "do not fit": lambda: fit(net(), (X, draw(40, 2)), None, RECIPE),
        "no objective named 'regresion': did you mean regression": lambda: evaluate(net(), X, objective="regresion"),
        "train data: classification: labels of shape": lambda: fit(net(), (X, NUMBERS[:, :2]), None, RECIPE,
                                                                    objective=Classification()),
        "targets must be from 0 to 1": lambda: fit(net(), (X, NUMBERS), None, RECIPE, objective="multi-label"),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


class Taking(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(12, 3)

    def forward(self, x):
        return self.body(x)


def test_a_profile_leaves_out_what_the_model_does_not_take():
    batches = [{"x": torch.randn(40, 12), "extra": torch.zeros(40)} for _ in range(3)]
    with pytest.warns(LeftOut, match="extra"):
        known = rf.profile(Taking(), batches)
    assert known.plan(rf.Ranks({"body": 2}))["body"].rank == 2


def test_a_profile_checks_targets_against_the_objective_that_was_named():
    batches = [(torch.randn(40, 12), torch.randn(40, 3))]
    with pytest.raises(ObjectiveError, match="segmentation"):
        rf.profile(Taking(), batches, objective="segmentation")
    assert rf.profile(Taking(), batches, objective="regression").candidates


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([X, CLASSES], r"a list is taken for batches, .*: give inputs and their targets as a tuple, \(x, y\)"),
        ((X, ["abc"[c] for c in CLASSES]), "and are a list of text: number the classes"),
        ((X, CLASSES.tolist()), r"and are a list: give torch.tensor\(targets\)"),
        ((X, CLASSES.numpy()), "and are a ndarray: give torch.tensor"),
    ],
    ids=["list", "text", "numbers", "array"],
)
def test_a_pair_that_was_taken_for_two_batches_is_told_so(data, said):
    with pytest.raises(TrainingError, match=f"evaluation data: .*{said}"):
        evaluate(net(), data)
    with pytest.raises(TrainingError, match=f"train data: .*{said}"):
        fit(net(), data, None, RECIPE)
    assert evaluate(net(), [X[:20], X[20:]], teacher=net()).judged.value == 0  # as batches without targets


def test_a_list_of_samples_is_a_data_set():
    pairs = [(torch.randn(12), number % 3) for number in range(100)]
    found = rf.evaluate(Taking(), pairs)
    assert found.objective == "classification"
    assert found.count == 100
    assert [len(batch[0]) for batch in batches_of(pairs, 64)] == [64, 36]


@pytest.mark.parametrize("limit", [-1, 0, 5.0, True])
def test_no_samples_and_less_are_refused_before_any_are_read(limit):
    with pytest.raises(ValueError, match=r"^samples must be at least 1"):
        batches_of(torch.randn(8, 12), 4, limit)
    assert [len(batch) for batch in batches_of(torch.randn(8, 12), 4, np.int64(5))] == [4, 1]


def test_how_many_targets_were_expected_is_said():
    with pytest.raises(ObjectiveError, match="3 a sample, not 2"):
        infer(torch.randn(8, 3), (torch.randn(8, 12), torch.randn(8, 2)))
    with pytest.raises(ObjectiveError, match="integers"):
        infer(torch.randn(8, 3), (torch.randn(8, 12), torch.arange(8.0)))


def test_the_whole_job_takes_a_tuple_of_data_sets():
    from rankfold.pipeline import Settings, compress

    pairs = [(torch.randn(12), number % 3) for number in range(120)]
    settings = Settings(curve=False, slices=False, samples=64)
    result = compress(Taking(), (pairs[:80], pairs[80:]), rf.Ranks({"body": 2}), settings=settings)
    assert result.plan["body"].rank == 2
    with pytest.raises(ValueError, match=r"a list: give an object with train.*or a tuple"):
        compress(Taking(), pairs, "params=0.9", settings=settings)


def test_a_figure_that_is_no_number_for_a_sample_that_is_none_is_refused_by_its_number():
    net, x, y = nn.Linear(4, 2), torch.randn(20, 4), torch.randn(20, 2)
    x[13, 1] = float("nan")
    with pytest.raises(TrainingError, match="test data: sample 13 holds a value that is not a finite"):
        rf.evaluate(net, (x, y), batch_size=4, role="test")
    x[13, 1] = 0
    net.weight.data[0] = float("nan")  # not of the data: the figure says it
    assert not math.isfinite(rf.evaluate(net, (x, y)).judged.value)
