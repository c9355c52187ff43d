"""The training loop: it learns, repeats itself exactly, survives interruption, and leaves no trace."""

import hashlib
import json
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from rankfold.objectives import objective
from rankfold.train import Augment, Distill, Plateau, Recipe, Relax, TrainingError, checkpoint, evaluate, fit

RECIPE = Recipe(epochs=3, batch_size=64, learning_rate=0.05, warmup=0.1)


class Pixels:
    """Raw pixels, normalised when taken, as the splits of rankfold.zoo are."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def normalize(self, batch):
        return batch.float() / 8 - 1


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(labels).long()
    return Pixels(images[:600], labels[:600]), Pixels(images[600:900], labels[600:900])


def net(seed=0, dropout=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, optimizer="adam", learning_rate=0.01, schedule="constant"),
        replace(RECIPE, optimizer="adamw", learning_rate=0.01, schedule="one-cycle", clip_norm=1.0),
        replace(RECIPE, schedule="step", ema=0.9, label_smoothing=0.1, decay_vectors=True),
        replace(RECIPE, precision="bfloat16"),
    ],
    ids=lambda recipe: f"{recipe.optimizer}-{recipe.schedule}-{recipe.precision}",
)
def test_it_learns_and_leaves_the_best_epoch(digits, recipe):
    train, validation = digits
    model = net()
    history = fit(model, train, validation, recipe)
    assert len(history.epochs) == recipe.epochs
    assert history.stopped is None
    assert history.resumed_from == 0
    result = evaluate(model, validation)
    assert result.accuracy > 0.75 > 0.3 > history.start.accuracy
    assert result.accuracy == max(epoch.validation_accuracy for epoch in history.epochs)
    assert result.accuracy == history.best.validation_accuracy
    assert history.best.epoch == history.best_epoch


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(digits):
    runs = []
    for seed in (0, 0, 1):
        model = net()
        fit(model, *digits, replace(RECIPE, epochs=1, augment=Augment(1), seed=seed))
        runs.append(weights(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


class Stop(Exception):
    pass


def stop_at(epoch, batch, error):
    def progress(event):
        if event.epoch == epoch and event.batch == batch:
            raise error

    return progress


@pytest.mark.parametrize(("epoch", "batch"), [(1, 2), (2, 3), (3, 1), (2, 9)])
@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, ema=0.9, augment=Augment(1)),
        # no loss falls by 90 %: the rate is divided after every epoch
        replace(RECIPE, optimizer="adam", schedule="plateau", plateau=Plateau(0.1, patience=0, threshold=0.9)),
        replace(RECIPE, weight_decay=0.1, relax=Relax(after=0.4, factor=0.5)),
    ],
    ids=["ema", "plateau", "relax"],
)
def test_a_resumed_run_is_bit_identical(digits, tmp_path, recipe, epoch, batch):
    whole = net()
    expected = fit(whole, *digits, recipe)
    broken = net()
    with pytest.raises(Stop):
        fit(broken, *digits, recipe, directory=tmp_path, progress=stop_at(epoch, batch, Stop()))
    resumed = net(seed=5)
    history = fit(resumed, *digits, recipe, directory=tmp_path)
    assert same(weights(resumed), weights(whole))
    assert history.resumed_from == (epoch if batch == 9 else epoch - 1)
    assert history.best_epoch == expected.best_epoch
    assert history.start == expected.start
    strip = [replace(record, seconds=0.0) for record in history.epochs]
    assert strip == [replace(record, seconds=0.0) for record in expected.epochs]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_dict() for record in history.epochs]
    assert [file.name for file in tmp_path.glob("*.pt")] == ["checkpoint-0003.pt"]


def test_the_plateau_schedule_follows_the_validation_loss(digits, tmp_path):
    recipe = replace(RECIPE, epochs=4, warmup=0.0, schedule="plateau", plateau=Plateau(0.1, 0, threshold=0.9))
    history = fit(net(), *digits, recipe, directory=tmp_path)
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    with pytest.raises(TrainingError, match="validation"):
        fit(net(), digits[0], None, recipe)


class Deaf(nn.Module):
    """Its answers do not depend on its weights, so that weight decay alone moves them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 10)

    def forward(self, x):
        return self.inner(x.flatten(1)) * 0


@pytest.mark.parametrize(
    ("relax", "late"), [(None, 1.0), (Relax(after=0.25, factor=0.0), 0.0), (Relax(0.25, 0.5), 0.5)]
)
def test_weight_decay_is_relaxed_after_its_part_of_the_steps(digits, relax, late):
    """Without gradients a weight is (1 − ηλ)^early (1 − ηλ·factor)^late times itself; biases stay."""
    model, steps, rate, decay = Deaf(), 4 * (600 // 64), 0.1, 0.2
    start = weights(model)
    recipe = Recipe(
        epochs=4, batch_size=64, learning_rate=rate, momentum=0.0, nesterov=False, weight_decay=decay,
        schedule="constant", warmup=0.0, relax=relax,
    )  # fmt: skip
    fit(model, digits[0], None, recipe)
    early = round(0.25 * steps)
    shrunk = (1 - rate * decay) ** early * (1 - rate * decay * late) ** (steps - early)
    torch.testing.assert_close(model.inner.weight, shrunk * start["inner.weight"])
    assert torch.equal(model.inner.bias, start["inner.bias"])


def test_a_checkpoint_from_before_there_was_a_plateau_is_taken_up(digits, tmp_path):
    recipe = replace(RECIPE, epochs=1)
    assert "plateau" not in recipe.to_dict()
    fit(net(), *digits, recipe, directory=tmp_path)
    state = torch.load(tmp_path / "checkpoint-0001.pt", weights_only=True)
    del state["start"]["chance"]
    checkpoint.save(tmp_path, 1, state)
    again = fit(net(), *digits, recipe, directory=tmp_path)
    assert again.resumed_from == 1
    assert again.start.chance is None


def test_a_run_that_sits_at_chance_says_so(digits):
    steep = replace(RECIPE, optimizer="adam", learning_rate=1.0, warmup=0.0)
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    frozen[1].weight.data.zero_()
    frozen[1].weight.requires_grad_(False)
    history = fit(frozen, *digits, steep)
    assert "stays at chance" in history.warning
    assert "weights of 1 of 2 layers have gone to zero (1)" in history.warning
    assert history.stopped is None
    assert fit(net(), *digits, RECIPE).warning is None


def test_the_test_of_resuming_sees_a_lost_optimizer_state(digits, tmp_path):
    whole = net()
    fit(whole, *digits, RECIPE)
    broken = net()
    with pytest.raises(Stop):
        fit(broken, *digits, RECIPE, directory=tmp_path, progress=stop_at(2, 3, Stop()))
    file = tmp_path / "checkpoint-0001.pt"
    state = torch.load(file, weights_only=True)
    for slot in state["optimizer"]["state"].values():
        slot["momentum_buffer"].zero_()
    checkpoint.save(tmp_path, 1, state)
    resumed = net()
    fit(resumed, *digits, RECIPE, directory=tmp_path)
    assert not same(weights(resumed), weights(whole))


def test_a_shuffling_loader_resumes_exactly_and_its_generator_is_left_as_found(digits, tmp_path):
    train, validation = digits
    dataset = torch.utils.data.TensorDataset(train.normalize(train.inputs), train.labels)

    def loader():
        return torch.utils.data.DataLoader(
            dataset, batch_size=100, shuffle=True, generator=torch.Generator().manual_seed(3)
        )

    whole = net()
    first = loader()
    fit(whole, first, validation, RECIPE)
    assert torch.equal(first.generator.get_state(), torch.Generator().manual_seed(3).get_state())
    with pytest.raises(Stop):
        fit(net(), loader(), validation, RECIPE, directory=tmp_path, progress=stop_at(2, 3, Stop()))
    resumed = net()
    fit(resumed, loader(), validation, RECIPE, directory=tmp_path)
    assert same(weights(resumed), weights(whole))


def test_datasets_of_samples_are_batched_and_shuffled(digits):
    train, validation = digits

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 600

        def __getitem__(self, index):
            return train.normalize(train.inputs[index]), int(train.labels[index])

    model = net()
    events = []
    history = fit(model, Samples(), validation, RECIPE, progress=events.append)
    assert history.best.validation_accuracy > 0.8
    assert events[0].batches == 9
    assert events[-1].fraction == 1
    assert [event.finished for event in events if event.finished is not None] == list(history.epochs)


def test_a_finished_run_is_read_back_without_training(digits, tmp_path):
    model = net()
    history = fit(model, *digits, RECIPE, directory=tmp_path)
    again, events = net(seed=9), []
    read = fit(again, *digits, RECIPE, directory=tmp_path, progress=events.append)
    assert same(weights(model), weights(again))
    assert read == replace(history, resumed_from=3)
    assert events == []


def test_another_run_in_the_same_directory_is_refused(digits, tmp_path):
    train, validation = digits
    fit(net(), train, validation, replace(RECIPE, epochs=1), directory=tmp_path)
    with pytest.raises(TrainingError, match="another recipe"):
        fit(net(), train, validation, RECIPE, directory=tmp_path)
    with pytest.raises(TrainingError, match="another model"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), train, validation, replace(RECIPE, epochs=1),
            directory=tmp_path)  # fmt: skip
    with pytest.raises(TrainingError, match="batches"):
        fit(net(), validation, None, replace(RECIPE, epochs=1), directory=tmp_path)


def test_damaged_checkpoints_are_refused(digits, tmp_path):
    recipe = replace(RECIPE, epochs=1)
    fit(net(), *digits, recipe, directory=tmp_path)
    file, manifest = tmp_path / "checkpoint-0001.pt", tmp_path / "checkpoint.json"
    whole, entry = file.read_bytes(), manifest.read_text()
    middle = len(whole) // 2
    damage = {
        file: [whole[:middle], b"", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]],
        manifest: [b"{", b"[]", b"{}", entry.replace("0001", "0007").encode(), b"\xff\xfe"],
    }
    for target, contents in damage.items():
        for content in contents:
            file.write_bytes(whole)
            manifest.write_text(entry)
            target.write_bytes(content)
            with pytest.raises(TrainingError, match="anew"):
                fit(net(), *digits, recipe, directory=tmp_path)


@pytest.mark.parametrize(("key", "value"), [("batches", [None] * 1000), ("objective", {"a": ["b"] * 1000})])
def test_a_checkpoint_of_something_else_is_told_in_a_short_line(digits, tmp_path, key, value):
    recipe = replace(RECIPE, epochs=1)
    fit(net(), *digits, recipe, directory=tmp_path)
    file, manifest = tmp_path / "checkpoint-0001.pt", tmp_path / "checkpoint.json"
    torch.save(torch.load(file, weights_only=True) | {key: value}, file)
    known = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(known | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
    with pytest.raises(TrainingError, match=r"does not hold what a training writes .*: delete") as error:
        fit(net(), *digits, recipe, directory=tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("setting", [{"weight_decay": ...}, {"lr": None}, {"momentum": "0.9"}], ids=str)
def test_settings_of_the_optimizer_that_are_none_are_refused(digits, tmp_path, setting):
    """torch takes up whatever stands there, and fails in the next step."""
    recipe = replace(RECIPE, epochs=1, optimizer="sgd")
    fit(net(), *digits, recipe, directory=tmp_path)
    file, manifest = tmp_path / "checkpoint-0001.pt", tmp_path / "checkpoint.json"
    state = torch.load(file, weights_only=True)
    group = state["optimizer"]["param_groups"][0] | setting
    state["optimizer"]["param_groups"][0] = {name: value for name, value in group.items() if value is not ...}
    torch.save(state, file)
    known = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(known | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
    with pytest.raises(TrainingError, match=r"does not hold what a training writes .*: delete"):
        fit(net(), *digits, recipe, directory=tmp_path)


def test_bad_samples_are_told_where_they_are_why(digits):
    train, _ = digits
    inputs = train.normalize(train.inputs).index_fill(0, torch.tensor([3]), float("nan"))
    stopped = fit(net(), [(inputs, train.labels)], None, RECIPE).stopped
    assert "the batch holds NaN or infinity: look for bad samples" in stopped


def test_a_failed_write_keeps_the_old_checkpoint(digits, tmp_path, monkeypatch):
    recipe = replace(RECIPE, epochs=2)
    whole = net()
    fit(whole, *digits, recipe)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    def progress(event):
        if event.epoch == 2:
            monkeypatch.setattr("os.fsync", full_disk)

    with pytest.raises(OSError, match="No space"):
        fit(net(), *digits, recipe, directory=tmp_path, progress=progress)
    monkeypatch.undo()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint-0001.pt",
        "checkpoint.json",
        "metrics.jsonl",
    ]
    resumed = net()
    assert fit(resumed, *digits, recipe, directory=tmp_path).resumed_from == 1
    assert same(weights(resumed), weights(whole))


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: a process started in the background is born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_a_resumable_checkpoint(digits, tmp_path):
    whole = net()
    fit(whole, *digits, RECIPE)

    def press(event):
        if (event.epoch, event.batch) == (2, 5):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(net(), *digits, RECIPE, directory=tmp_path, progress=press)
    resumed = net()
    assert fit(resumed, *digits, RECIPE, directory=tmp_path).resumed_from == 1
    assert same(weights(resumed), weights(whole))


def test_an_interrupted_model_holds_its_best_weights(digits):
    model = net()
    with pytest.raises(KeyboardInterrupt):
        fit(model, *digits, RECIPE, progress=stop_at(3, 4, KeyboardInterrupt()))
    two = net()
    with pytest.raises(KeyboardInterrupt):
        fit(two, *digits, RECIPE, progress=stop_at(3, 1, KeyboardInterrupt()))
    assert same(weights(model), weights(two))


def test_a_diverging_run_is_a_result_with_a_sentence(digits, tmp_path):
    model = net()
    start = weights(model)
    history = fit(model, *digits, replace(RECIPE, learning_rate=1e30, warmup=0.0), directory=tmp_path)
    assert "loss is" in history.stopped
    assert "clip_norm" in history.stopped
    assert history.epochs == ()
    assert history.best_epoch == 0
    assert history.best is None
    assert same(weights(model), start)


def test_divergence_after_a_good_epoch_keeps_that_epoch(digits):
    train, validation = digits
    poison = []

    def normalize(batch):
        batch = Pixels.normalize(train, batch)
        return batch * float("nan") if poison else batch

    data = Pixels(train.inputs, train.labels)
    data.normalize = normalize
    model = net()
    history = fit(model, data, validation, RECIPE, progress=lambda event: event.finished and poison.append(True))
    assert "epoch 2, batch 1 of 9" in history.stopped
    assert history.best_epoch == 1
    assert evaluate(model, validation).accuracy == history.epochs[0].validation_accuracy


def test_weights_that_get_worse_are_not_kept(digits):
    model = net(dropout=0.0)
    fit(model, *digits, RECIPE)
    good = weights(model)
    history = fit(model, *digits, replace(RECIPE, epochs=1, learning_rate=30.0, warmup=0.0, clip_norm=1.0))
    assert history.best_epoch == 0
    assert same(weights(model), good)


def test_model_and_random_state_are_left_as_found(digits):
    model = net()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].bias.grad = torch.ones(10)
    kept, frozen = model[5].bias.grad, model[0].weight.clone()
    handle = model[0].register_forward_hook(lambda *_: None)
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    teacher = net(seed=2).train()
    taught = weights(teacher)
    fit(model, *digits, replace(RECIPE, epochs=1, distill=Distill()), teacher=teacher)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert [module.training for module in model.modules()] == modes
    assert all(module.training for module in teacher.modules())
    assert same(weights(teacher), taught)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(model[0].weight, frozen)
    assert not model[0].weight.requires_grad
    assert model[5].bias.grad is kept
    assert model[0].weight.grad is None
    assert handle.id in model[0]._forward_hooks


def test_norms_and_biases_are_exempt_from_decay():
    inputs, labels = torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)
    recipe = Recipe(
        epochs=1, batch_size=8, learning_rate=0.1, warmup=0.0, weight_decay=0.5, nesterov=False, schedule="constant"
    )
    for decay_vectors, factor in ((False, 1.0), (True, 0.95)):
        model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
        start = weights(model)
        fit(model, (inputs, labels), None, replace(recipe, decay_vectors=decay_vectors))
        # Zero inputs: no gradient reaches the norm's scale or the matrix, decay alone moves them.
        torch.testing.assert_close(model[0].weight.data, start["0.weight"] * factor)
        torch.testing.assert_close(model[1].weight.data, start["1.weight"] * 0.95)


def test_impossible_requests_are_refused_before_any_work(digits):
    train, validation = digits
    frozen = net().requires_grad_(False)
    cases = [
        ("train data: it is empty", net(), Pixels(train.inputs[:0], train.labels[:0]), validation, {}),
        ("validation data: it is empty", net(), train, Pixels(train.inputs[:0], train.labels[:0]), {}),
        ("train data: label 10 is outside", net(), Pixels(train.inputs, train.labels + 1), validation, {}),
        ("validation data: label 10", net(), train, Pixels(train.inputs, train.labels + 1), {}),
        ("nothing to train", frozen, train, validation, {}),
        ("does not distil", net(), train, validation, {"teacher": net()}),
        ("no teacher", net(), train, validation, {"recipe": replace(RECIPE, distill=Distill())}),
        (
            "outputs of teacher and model differ",
            net(),
            train,
            validation,
            {"recipe": replace(RECIPE, distill=Distill()), "teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 7))},
        ),
    ]
    for message, model, data, held_out, rest in cases:
        start = weights(model)
        with pytest.raises(TrainingError, match=message):
            fit(model, data, held_out, rest.pop("recipe", RECIPE), **rest)
        assert same(weights(model), start)


def test_one_sample_and_small_last_batches_do_not_break_batch_norm(digits):
    train, _ = digits
    few = Pixels(train.inputs[:65], train.labels[:65])
    assert fit(net(), few, None, replace(RECIPE, epochs=1)).epochs[0].validation_accuracy is None
    assert len(fit(net(), Pixels(train.inputs[:3], train.labels[:3]), None, RECIPE).epochs) == 3


def test_distillation_approaches_the_teacher(digits):
    train, validation = digits
    teacher = net(dropout=0.0)
    fit(teacher, train, validation, RECIPE)
    student = net(seed=4, dropout=0.0)
    fit(student, train, None, replace(RECIPE, epochs=6, distill=Distill(2.0, 1.0)), teacher=teacher)
    teacher.eval(), student.eval()
    batch = validation.normalize(validation.inputs)
    agreement = (teacher(batch).argmax(1) == student(batch).argmax(1)).float().mean()
    assert agreement > 0.9


class Picky(nn.Linear):
    """Has no kernel for bfloat16."""

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented\nfor 'BFloat16'")
        return super().forward(x.flatten(1))


def test_what_bfloat16_cannot_is_told_before_any_work(digits, tmp_path):
    train, validation = digits
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for model, teacher, title in ((Picky(64, 10), None, "the model"), (plain, Picky(64, 10), "the teacher")):
        recipe = replace(RECIPE, precision="bfloat16", distill=None if teacher is None else Distill())
        message = f"{title} cannot compute in bfloat16 .not implemented for 'BFloat16'.: .*precision 'float32'"
        with pytest.raises(TrainingError, match=message):
            fit(model, train, validation, recipe, teacher=teacher, directory=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert fit(Picky(64, 10), train, validation, replace(RECIPE, epochs=1)).stopped is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("kind", ["bfloat16", "view", "float64"])
def test_optimizers_step_as_unfused_ones_do(kind, optimizer):
    """Fused steps of torch leave most of a half-precision parameter as it is and write into the gaps of a view."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(64, 20, generator=generator, dtype=torch.float64)
            self.base = start.bfloat16() if kind == "bfloat16" else start.clone()
            self.weight = nn.Parameter(self.base[:, ::2] if kind == "view" else self.base)

        def forward(self, x):
            return x.flatten(1).to(self.weight.dtype) @ self.weight

    generator = torch.Generator().manual_seed(1)
    width = 10 if kind == "view" else 20
    rows, labels = torch.randn(256, 64, generator=generator), torch.randint(width, (256,), generator=generator)
    recipe = Recipe(
        2, batch_size=256, optimizer=optimizer, learning_rate=0.1, weight_decay=0.0, schedule="constant", warmup=0.0,
        momentum=0.5, nesterov=False,
    )  # fmt: skip
    model, naive = Layer(), Layer()
    between = model.base[:, 1::2].clone()
    fit(model, (rows, labels), None, recipe)
    steps = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.5, fused=False, foreach=False),
        "adam": lambda p: torch.optim.Adam(p, 0.1, fused=False, foreach=False),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.0, fused=False, foreach=False),
    }[optimizer](naive.parameters())
    for _ in range(2):
        steps.zero_grad()
        nn.functional.cross_entropy(naive(rows), labels).backward()
        steps.step()
    tolerance = 0.05 if kind == "bfloat16" else 1e-6
    torch.testing.assert_close(model.weight, naive.weight, rtol=tolerance, atol=tolerance)
    assert not torch.equal(model.weight, Layer().weight)
    if kind == "view":
        assert torch.equal(model.base[:, 1::2], between)


# ---- a last batch of one sample ------------------------------------------------------------------------------------


def rows_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def rows(count, shape=(6,)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *shape, generator=generator), torch.arange(count) % 3


def loader(data, batch_size):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size)


def test_one_row_that_batch_normalisation_cannot_take_is_left_out():
    recipe = replace(RECIPE, epochs=2, batch_size=8, schedule="constant", warmup=0.0)
    x, y = rows(17)
    model, whole = rows_net(), rows_net()
    history = fit(model, loader((x, y), 8), None, recipe)
    assert len(history.epochs) == 2
    fit(whole, [(x[:8], y[:8]), (x[8:16], y[8:16])], None, recipe)
    found, expected = weights(model), weights(whole)
    calls = "1.num_batches_tracked"  # counted before torch looks at the batch
    assert (found.pop(calls), expected.pop(calls)) == (6, 4)
    assert same(found, expected)


def test_one_image_has_a_variance_and_is_trained_on():
    data = [(image[None], label[None]) for image, label in zip(*rows(4, (1, 8, 8)), strict=True)]
    model = net()
    before = weights(model)
    fit(model, data, None, replace(RECIPE, epochs=1, batch_size=1))
    assert not same(before, weights(model))


def test_nothing_but_single_rows_is_refused_with_the_remedy():
    with pytest.raises(TrainingError, match="batches of at least two"):
        fit(rows_net(), loader(rows(5), 1), None, replace(RECIPE, epochs=1, batch_size=1))


def test_other_faults_of_a_single_sample_come_through():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            if self.training and len(x) == 1:
                raise ValueError("never alone")
            return self.layer(x)

    with pytest.raises(ValueError, match="never alone"):
        fit(Picky(), loader(rows(5), 4), None, replace(RECIPE, epochs=1, batch_size=4))


def test_smooth_labels_are_refused_where_nothing_would_be_smoothed():
    x = torch.randn(32, 4)
    recipe = Recipe(epochs=1, batch_size=16, label_smoothing=0.5)
    mine = objective("mine", loss=lambda output, batch: (output - batch[1]).square().mean())
    numbers, labels, yes = torch.randn(32, 2), torch.arange(32) % 2, (torch.randn(32, 2) > 0).float()
    for target, chosen in ((numbers, None), (numbers, "regression"), (numbers, mine)):
        with pytest.raises(
            TrainingError, match=r"label_smoothing=0\.5, and the objective .* leave label_smoothing out"
        ):
            fit(nn.Linear(4, 2), (x, target), None, recipe, objective=chosen)
    with pytest.raises(TrainingError, match="the objective teacher has no labels"):
        fit(nn.Linear(4, 2), x, None, recipe, teacher=nn.Linear(4, 2))
    with pytest.raises(TrainingError, match="distills with weight 1"):
        fit(nn.Linear(4, 2), (x, labels), None, replace(recipe, distill=Distill(weight=1)), teacher=nn.Linear(4, 2))
    for target in (labels, yes):  # and where there are labels it does what it says
        losses = []
        for smoothing in (0.0, 0.5):
            torch.manual_seed(0)
            how = replace(recipe, label_smoothing=smoothing)
            losses.append(fit(nn.Linear(4, 2), (x, target), None, how).epochs[0].train_loss)
        assert losses[0] != losses[1]
    with pytest.raises(TrainingError, match=r"give a rankfold\.Recipe, not a dict: Recipe\.from_dict"):
        fit(nn.Linear(4, 2), (x, labels), None, {"epochs": 1})


def test_progress_comes_after_every_batch_and_with_the_record_after_the_last():
    seen = []
    data = torch.randn(40, 4), torch.arange(40) % 2
    history = fit(nn.Linear(4, 2), data, data, Recipe(epochs=2, batch_size=10), progress=seen.append)
    assert [(step.epoch, step.batch) for step in seen] == [(e, b) for e in (1, 2) for b in (1, 2, 3, 4)]
    assert [step.finished for step in seen if step.finished] == list(history.epochs)
    assert [step.finished is not None for step in seen] == [False, False, False, True] * 2
