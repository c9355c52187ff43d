"""Data sets: splits that share nothing and never move, normalisation, the cache, users' data, every fault."""

import os
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from rankfold import zoo
from rankfold.batches import arguments, batches_of, labels_of
from rankfold.zoo import data as data_module
from rankfold.zoo import images
from rankfold.zoo.split import Split, hold_out

DATA = os.environ.get("RANKFOLD_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="RANKFOLD_DATA is not set")


def numbered(labels: list[int]) -> Split:
    """Samples that carry their own index, so that a split of them can be traced."""
    inputs = torch.arange(len(labels), dtype=torch.float32).view(-1, 1)
    return Split(inputs, torch.tensor(labels), torch.zeros(1), torch.ones(1))


def origin(split: Split) -> list[int]:
    return split.inputs.flatten().int().tolist()


# --- splits -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=80), draw=st.data())
def test_holding_out_partitions_whatever_the_labels(labels, draw):
    count = draw.draw(st.integers(1, len(labels) - 1))
    kept, held = hold_out(numbered(labels), count)
    assert len(held) == count
    assert sorted(origin(kept) + origin(held)) == list(range(len(labels)))
    for part in (kept, held):
        assert part.labels.tolist() == [labels[i] for i in origin(part)]
    assert origin(hold_out(numbered(labels), count)[1]) == origin(held)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(20, 60), min_size=2, max_size=5))
def test_holding_out_keeps_the_proportions(sizes):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    _, held = hold_out(numbered(labels), len(labels) // 4)
    for label, size in enumerate(sizes):
        assert abs(int((held.labels == label).sum()) - len(held) * size / len(labels)) < 1


def test_holding_out_nothing_or_everything_is_refused():
    for count in (0, 3, -1):
        with pytest.raises(zoo.ZooError, match=f"{count} samples cannot be held out of 3"):
            hold_out(numbered([0, 0, 1]), count)


def content(split: Split) -> list[int]:
    return [hash(sample.tobytes()) for sample in split.inputs.flatten(1).numpy()]


def test_digits_are_complete_disjoint_and_always_the_same():
    data, again = zoo.load_data("digits"), zoo.load_data("digits")
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [1078, 270, 449]
    samples = [sample for split in splits for sample in content(split)]
    assert len(set(samples)) == len(samples) == 1797
    for split, other in zip(splits, (again.train, again.validation, again.test), strict=True):
        assert torch.equal(split.inputs, other.inputs)
        shares = split.labels.bincount(minlength=10) / len(split)
        assert shares.min() > 0.09
        assert shares.max() < 0.11
    inputs = data.train.normalize(data.train.inputs)
    assert inputs.mean().abs() < 1e-3
    assert (inputs.std() - 1).abs() < 1e-3
    assert data.classes == 10


@needs_data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_published_images_are_split_without_leakage(name):
    data = zoo.load_data(name)
    full = 50_000 if name == "cifar10" else 60_000
    assert (len(data.train), len(data.validation), len(data.test)) == (full - 5_000, 5_000, 10_000)
    parts = images.load_images(name)
    assert torch.equal(data.test.inputs, parts["test"][0])
    # train and validation together are the published train split, sample for sample
    together = sorted(content(data.train) + content(data.validation))
    assert together == sorted(content(Split(*parts["train"], data.train.mean, data.train.std)))
    share = data.validation.labels.bincount() / 5_000
    assert (share - parts["train"][1].bincount() / full).abs().max() < 1e-3
    if name != "fashion-mnist":  # the published constants of the other two
        assert not set(together) & set(content(data.test))
    pixels = parts["train"][0].double() / 255
    expected = {"mnist": 0.1307, "fashion-mnist": 0.2860, "cifar10": 0.4734}[name]
    assert abs(pixels.mean().item() - expected) < 1e-4


# --- the split as a container -----------------------------------------------------------------------------


def pixels(count: int, generator_seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(generator_seed)
    inputs = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return Split(inputs, labels, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0]))


def test_normalization_is_that_of_each_channel():
    split = pixels(6)
    expected = torch.empty(6, 3, 4, 4)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        expected[:, channel] = (split.inputs[:, channel] / 255 - mean) / std
    torch.testing.assert_close(split.normalize(split.inputs), expected)
    assert split.normalize(split.inputs).dtype == torch.float32
    sample, label = split[4]
    torch.testing.assert_close(sample, expected[4])
    assert label == split.labels[4]
    assert torch.equal(split[-1][0], split[5][0])
    with pytest.raises(IndexError):
        split[6]


@settings(deadline=None)
@given(count=st.integers(1, 20), batch_size=st.integers(1, 25), seed=st.integers(0, 99), shuffle=st.booleans())
def test_batches_cover_every_sample_once_per_iteration(count, batch_size, seed, shuffle):
    split = numbered([0] * count)
    batches = split.batches(batch_size, shuffle, torch.Generator().manual_seed(seed))
    for _ in range(2):
        parts = list(batches)
        assert len(parts) == len(batches)
        assert [len(inputs) for inputs, _ in parts[:-1]] == [batch_size] * (len(parts) - 1)
        seen = torch.cat([inputs for inputs, _ in parts]).flatten().int().tolist()
        assert sorted(seen) == list(range(count))
        assert shuffle or seen == list(range(count))


def test_shuffling_follows_the_generator_and_changes_between_epochs():
    split = numbered([0] * 50)

    def orders(seed: int) -> list[list[int]]:
        batches = split.batches(7, shuffle=True, generator=torch.Generator().manual_seed(seed))
        return [torch.cat([inputs for inputs, _ in batches]).flatten().int().tolist() for _ in range(2)]

    assert orders(1) == orders(1) != orders(2)
    assert orders(1)[0] != orders(1)[1]
    with pytest.raises(ValueError, match=r"needs a torch\.Generator"):
        split.batches(7, shuffle=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        split.batches(0)


def test_subset_and_take_keep_inputs_and_labels_together():
    split = numbered([3, 1, 4, 1, 5, 9, 2, 6])
    part = split.subset(torch.tensor([5, 0]))
    assert (origin(part), part.labels.tolist()) == ([5, 0], [9, 3])
    taken = split.take(5, torch.Generator().manual_seed(0))
    assert len(set(origin(taken))) == 5
    assert taken.labels.tolist() == [split.labels[i] for i in origin(taken)]
    assert origin(split.take(5, torch.Generator().manual_seed(0))) == origin(taken)
    for count in (0, 9):
        with pytest.raises(ValueError, match=f"{count} samples cannot be taken of 8"):
            split.take(count, torch.Generator())


def test_a_split_is_shown_by_its_sizes():
    text = repr(zoo.load_data("digits"))
    assert "Split(1,078 samples, inputs (1078, 1, 8, 8) uint8)" in text
    assert len(text) < 400


def test_torch_data_loader_reads_a_split():
    split = pixels(10)
    inputs, labels = next(iter(DataLoader(split, batch_size=10)))
    torch.testing.assert_close(inputs, split.normalize(split.inputs))
    assert torch.equal(labels, split.labels)


@pytest.mark.parametrize(("shape", "scale"), [((3, 4, 4), 255), ((4, 4), 255), ((6,), 1), ((), 1)])
def test_images_of_bytes_are_divided_and_vectors_are_left_alone(shape, scale):
    inputs = torch.randint(0, 256, (20, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = [TensorDataset(inputs, torch.arange(20) % 2)] * 2
    train = data_module.data_of("given", parts).test
    torch.testing.assert_close(train[3][0], inputs[3] / scale if scale > 1 else inputs[3])


# --- images from parquet, and their cache -----------------------------------------------------------------


def write_parquet(folder, counts=(("train", 30), ("test", 10)), column="image", label=lambda i: i % 10, size=28):
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts:
        generator = torch.Generator().manual_seed(count)
        pictures = torch.randint(0, 256, (count, size, size), generator=generator, dtype=torch.uint8).numpy()
        rows = {column: [Image.fromarray(p) for p in pictures], "label": [label(i) for i in range(count)]}
        features = datasets.Features({column: datasets.Image(), "label": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A data folder with an `mnist` of 30 + 10 images, a cache folder, and the set's description to match."""
    small = images.ImageSet("hub/mnist", "image", (1, 28, 28), (("train", 30), ("test", 10)), (0.1,), (0.3,))
    monkeypatch.setitem(images.IMAGE_SETS, "mnist", small)
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RANKFOLD_DOWNLOAD", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write_parquet(tmp_path / "data" / "mnist")
    return tmp_path


def test_images_are_decoded_once_and_progress_is_told(small_mnist, monkeypatch):
    steps = []
    first = images.load_images("mnist", progress=lambda *step: steps.append(step))
    told = [(f"decoding mnist {split}, once", count) for split, count in (("train", 30), ("test", 10))]
    assert steps == [(what, done, count) for what, count in told for done in (0, count)]
    generator = torch.Generator().manual_seed(30)
    expected = torch.randint(0, 256, (30, 28, 28), generator=generator, dtype=torch.uint8)
    assert torch.equal(first["train"][0][:, 0], expected)
    assert first["test"][1].tolist() == list(range(10))
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded again"))
    second = images.load_images("mnist")
    for split in ("train", "test"):
        assert torch.equal(first[split][0], second[split][0])
        assert torch.equal(first[split][1], second[split][1])
    assert [file.suffix for file in (small_mnist / "cache").iterdir()] == [".safetensors"] * 2


def test_a_factory_that_reads_a_built_in_set_tells_whoever_called_it(small_mnist, monkeypatch):
    (small_mnist / "lent.py").write_text("from rankfold import zoo\n\n\ndef few():\n    d = zoo.load_data('mnist')\n"
                                         "    return d.train, d.test\n")  # fmt: skip
    monkeypatch.chdir(small_mnist)
    monkeypatch.setattr(data_module, "_VALIDATION_IMAGES", 10)
    steps = []
    zoo.load_data("lent.py:few", progress=lambda *step: steps.append(step))
    assert steps[0] == ("decoding mnist train, once", 0, 30)


def test_a_changed_file_is_decoded_anew(small_mnist):
    before = images.load_images("mnist")["test"][1]
    write_parquet(small_mnist / "data" / "mnist", label=lambda i: (i + 1) % 10)
    assert images.load_images("mnist")["test"][1].tolist() == [(i + 1) % 10 for i in before.tolist()]


def test_changing_the_tensors_leaves_the_cache_alone(small_mnist):
    images.load_images("mnist")
    images.load_images("mnist")["test"][0].zero_()
    assert images.load_images("mnist")["test"][0].any()


@pytest.mark.parametrize("damage", [b"", b"not safetensors", (100).to_bytes(8, "little") + b"{}"])
def test_a_damaged_cache_is_written_anew(small_mnist, damage):
    good = images.load_images("mnist")
    for file in (small_mnist / "cache").iterdir():
        file.write_bytes(damage)
    again = images.load_images("mnist")
    assert torch.equal(good["train"][0], again["train"][0])
    assert all(file.stat().st_size > 1_000 for file in (small_mnist / "cache").iterdir())


def test_without_a_place_for_the_cache_the_data_is_still_read(small_mnist, monkeypatch):
    (small_mnist / "file").write_text("in the way")
    monkeypatch.setenv("RANKFOLD_CACHE", str(small_mnist / "file"))
    with pytest.warns(UserWarning, match="could not be kept for next time"):
        assert len(images.load_images("mnist")["train"][1]) == 30


def test_an_interrupted_decoding_leaves_nothing_behind(small_mnist):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.load_images("mnist", progress=interrupt)
    assert not list(small_mnist.glob("cache/**/*"))


def test_parquet_that_is_not_the_data_set(small_mnist):
    folder = small_mnist / "data" / "mnist"
    faults = {
        "29 images and not 30": {"counts": (("train", 29), ("test", 10))},
        "31 images and not 30": {"counts": (("train", 31), ("test", 10))},
        "other labels than 0 to 9: 0 to 10": {"label": lambda i: i % 11},
        "other labels than 0 to 9: -1 to 8": {"label": lambda i: i % 10 - 1},
        "cannot be read: KeyError": {"column": "picture"},
        "cannot be read: ValueError": {"size": 27},
    }
    for sentence, fault in faults.items():
        write_parquet(folder, **fault)
        with pytest.raises(zoo.ZooError, match=sentence) as caught:
            zoo.load_data("mnist")
        assert "\n" not in str(caught.value)
        assert "mnist" in str(caught.value)
    (folder / "train.parquet").write_bytes(b"PAR1 this is not parquet PAR1")
    with pytest.raises(zoo.ZooError, match=r"train\.parquet cannot be read"):
        zoo.load_data("mnist")


def test_without_files_the_error_says_how_to_get_them(small_mnist, monkeypatch):
    for folder, place in ((str(small_mnist), f"not in {small_mnist}"), ("", "RANKFOLD_DATA is not set")):
        monkeypatch.setenv("RANKFOLD_DATA", folder)
        with pytest.raises(zoo.ZooError, match=rf"{place}.*mnist/train\.parquet.*--download.*RANKFOLD_DOWNLOAD=1"):
            zoo.load_data("mnist")


@pytest.mark.parametrize("by_environment", [False, True])
def test_the_hub_is_asked_only_on_demand(small_mnist, monkeypatch, by_environment):
    import datasets

    asked = []

    def from_hub(path, *, split, streaming):
        asked.append((path, split, streaming))
        rows = 30 if split == "train" else 10
        return ({"image": Image.new("L", (28, 28), i), "label": i % 10} for i in range(rows))

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    monkeypatch.setenv("RANKFOLD_DATA", "")
    if by_environment:
        monkeypatch.setenv("RANKFOLD_DOWNLOAD", "1")
    parts = images.load_images("mnist", download=not by_environment)
    assert asked == [("hub/mnist", "train", True), ("hub/mnist", "test", True)]
    assert parts["test"][0][:, 0, 0, 0].tolist() == list(range(10))


def test_missing_library_is_named(small_mnist, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(zoo.ZooError, match=r"pip install 'rankfold\[data\]'"):
        zoo.load_data("mnist")


def test_unknown_name_lists_the_names():
    assert zoo.data_names() == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
    with pytest.raises(zoo.ZooError, match=r"there is no data set 'cifar'.*cifar10.*package"):
        zoo.load_data("cifar")


# --- a user's own data ------------------------------------------------------------------------------------


def offered(monkeypatch, result):
    module = types.ModuleType("users_own_data")
    module.make = lambda: result
    monkeypatch.setitem(sys.modules, "users_own_data", module)
    return "users_own_data:make"


def tabular(count: int, classes: int = 3) -> TensorDataset:
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
    return TensorDataset(inputs, torch.arange(count) % classes)


def test_two_parts_get_a_validation_split_out_of_train(monkeypatch):
    data = zoo.load_data(offered(monkeypatch, (tabular(40), tabular(12))))
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (36, 4, 12, 3)
    train = torch.cat([data.train.inputs, data.validation.inputs])
    assert sorted(map(tuple, train.tolist())) == sorted(map(tuple, tabular(40).tensors[0].tolist()))
    assert torch.equal(data.test.inputs, tabular(12).tensors[0])
    assert torch.equal(data.train[0][0], data.train.inputs[0])


def test_three_parts_are_taken_as_they_are(monkeypatch):
    data = zoo.load_data(offered(monkeypatch, [tabular(9), tabular(6, classes=5), tabular(7)]))
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (9, 6, 7, 5)


def test_tokens_and_pixels_and_lists(monkeypatch):
    tokens = [(torch.tensor([i, 2, 3]), i % 2) for i in range(10)]
    data = zoo.load_data(offered(monkeypatch, (tokens, tokens)))
    assert data.test.normalize(data.test.inputs).dtype == torch.int64
    bytes_ = [(torch.full((1, 2, 2), 51 * i, dtype=torch.uint8), 0) for i in range(6)]
    data = zoo.load_data(offered(monkeypatch, (bytes_, bytes_)))
    torch.testing.assert_close(data.test[5][0], torch.ones(1, 2, 2))
    arrays = [(sample.numpy(), label) for sample, label in tabular(4)]
    assert zoo.load_data(offered(monkeypatch, (arrays, arrays))).test.inputs.dtype == torch.float32


def several(count: int, form: str) -> list:
    """Samples of two inputs that carry their index, in each of the forms that factories give."""
    inputs = [(torch.tensor([i, 1]), torch.tensor([True, False, True])) for i in range(count)]
    labels = [i % 3 for i in range(count)]
    if form == "tuple":
        return list(zip(inputs, labels, strict=True))
    named = [{"ids": ids, "mask": mask} for ids, mask in inputs]
    if form == "dict":
        return list(zip(named, labels, strict=True))
    return [values | {"labels": torch.tensor(label)} for values, label in zip(named, labels, strict=True)]


@pytest.mark.parametrize("form", ["tuple", "dict", "labels inside"])
def test_samples_of_several_inputs(monkeypatch, form):
    data = zoo.load_data(offered(monkeypatch, (several(30, form), several(6, form))))
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (27, 3, 6, 3)
    assert (data.channels, data.amount("test")) == (None, "6 test samples")
    found = []
    for part in (data.train, data.validation, data.train.take(5, torch.Generator().manual_seed(0))):
        (batch,) = batches_of(part)
        args, kwargs = arguments(batch)
        ids, mask = args if form == "tuple" else (kwargs["ids"], kwargs["mask"])
        assert set(kwargs) == (set() if form == "tuple" else {"ids", "mask"})
        assert mask.dtype == torch.bool
        assert torch.equal(labels_of(batch), ids[:, 0] % 3)
        found.append(ids[:, 0].tolist())
    assert sorted(found[0] + found[1]) == list(range(30))
    assert found[2] != found[0][:5]
    assert set(found[2]) <= set(found[0])


def test_loaders_are_passed_through(monkeypatch):
    loader = DataLoader(several(6, "dict"), batch_size=4)
    data = zoo.load_data(offered(monkeypatch, (loader, loader, loader)))
    assert data.train is loader
    assert (data.classes, data.amount("test")) == (None, "2 test batches")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tabular(10))


def test_streams_and_batches_are_passed_through(monkeypatch):
    batches = [(torch.randn(4, 5), torch.randn(4, 2)), (torch.randn(3, 5), torch.randn(3, 2))]
    unlabelled = [{"ids": torch.zeros(4, 7), "mask": torch.ones(4, 7)}]
    for part, amount in ((Stream(), "the test data"), (batches, "2 test batches"), (unlabelled, "1 test batches")):
        data = zoo.load_data(offered(monkeypatch, (part, part, part)))
        assert data.train is part
        assert data.amount("test") == amount
    assert [len(x) for x, _ in batches_of(Stream(), 4)] == [4, 4, 2]


@pytest.mark.parametrize("kind", ["numbers", "maps", "labels left out"])
def test_targets_of_any_kind(monkeypatch, kind):
    inputs = torch.randn(20, 3, 4, 4)
    target = {
        "numbers": torch.randn(20, 2),
        "maps": torch.randint(5, (20, 4, 4)),
        "labels left out": torch.tensor([-100, 1] * 10),
    }[kind]
    data = zoo.load_data(offered(monkeypatch, (TensorDataset(inputs, target), (inputs.numpy(), target.numpy()))))
    assert data.classes is None
    assert (len(data.train), len(data.validation)) == (18, 2)
    assert torch.equal(data.test.labels, target)
    assert torch.equal(data.test.inputs, inputs)


@pytest.mark.parametrize("form", ["tensor", "data set", "dict", "tuple"])
def test_data_without_targets(monkeypatch, form):
    ids = torch.arange(20)[:, None] * torch.ones(1, 3, dtype=torch.int64)
    part = {
        "tensor": ids,
        "data set": TensorDataset(ids),
        "dict": [{"ids": row, "text": "a word", "from": {"page": 3}, "note": None, "raw": b"a"} for row in ids],
        "tuple": [((row, row),) for row in ids],
    }[form]
    data = zoo.load_data(offered(monkeypatch, (part, part)))
    assert data.classes is None
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 20)
    (batch,) = batches_of(data.test)
    args, kwargs = arguments(batch)
    assert labels_of(batch) is None
    assert torch.equal(kwargs["ids"] if form == "dict" else args[0], ids)
    assert len(args) == {"dict": 0, "tuple": 2}.get(form, 1)


def test_a_factory_says_what_its_targets_mean(monkeypatch):
    spec = offered(monkeypatch, (tabular(40), tabular(12)))
    assert zoo.load_data(spec).objective is None
    module, _, name = spec.partition(":")
    getattr(__import__(module), name).objective = "classification"
    assert zoo.load_data(spec).objective == "classification"


@pytest.mark.parametrize("test", [None, 12])
def test_a_factory_may_return_what_the_functions_in_python_take(monkeypatch, test):
    parts = types.SimpleNamespace(
        train=tabular(40), validation=tabular(8), test=test and tabular(test), objective="teacher"
    )
    data = zoo.load_data(offered(monkeypatch, parts))
    assert (len(data.train), len(data.validation)) == (40, 8)
    assert (data.test is None) == (test is None)
    assert test is None or len(data.test) == test
    assert data.objective == "teacher"


def test_splits_are_passed_through(monkeypatch):
    split = pixels(10)
    data = zoo.load_data(offered(monkeypatch, (split, split, split)))
    assert data.train is split


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (tabular(3), r"must return \(train, test\) or .* and returned a "),
        ({"train": tabular(3)}, r"must return \(train, test\) or .* and returned a dict"),
        (([range] * 3, tabular(3)), r"sample 0 is neither \(input, target\) .*: it is a type"),
        (([{"x": torch.zeros(2), "at": {1, 2}}] * 3, tabular(3)), r"sample 0 is neither .*: its 'at' is a set"),
        ((iter([1]), tabular(3)), "a list_iterator is no data set .* give one of these, such as list"),
        ((tabular(3),), r"must return \(train, test\) or"),
        ((tabular(8), iter([])), "test: a list_iterator is no data set with a length and an index"),
        (([], tabular(3)), "train: the data set is empty"),
        (
            ([(torch.zeros(2), "cat")] * 3, tabular(3)),
            r"sample 0 is neither \(input, target\)",
        ),
        (
            ([(torch.zeros(2), 0), (torch.zeros(2), 0.5)], tabular(3)),
            r"sample 1 has a target \(\) float32 and sample 0",
        ),
        (([(torch.zeros(2), 0), (torch.zeros(2),)], tabular(3)), "sample 1 has no target and sample 0 has a target"),
        (([(torch.zeros(2), torch.zeros(2), 0)] * 3, tabular(3)), r"it has 3 members: .* \(\(a, b\), target\)"),
        (([(torch.zeros(2), -1)] * 3, tabular(3)), "label -1 is negative"),
        (
            ([(torch.zeros(2), 0), (torch.zeros(3), 0)], tabular(3)),
            r"sample 1 is \(3,\) float32 and sample 0 is \(2,\) float32, and all inputs must be alike",
        ),
        (([(torch.zeros(2), 0)], tabular(3)), "1 samples cannot be held out of 1"),
        ((several(3, "tuple") + several(3, "dict"), tabular(3)), r"sample 3 is \{ids: .* and sample 0 is \(\(2,\)"),
    ],
)
def test_faults_of_a_users_data(monkeypatch, result, sentence):
    with pytest.raises(zoo.ZooError, match=sentence) as caught:
        zoo.load_data(offered(monkeypatch, result))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "train", [[torch.zeros(5, 3)] * 3, DataLoader(tabular(3)), Stream()], ids=lambda x: type(x).__name__
)
def test_of_two_parts_that_cannot_be_divided_the_second_is_chosen_on(monkeypatch, train):
    data = zoo.load_data(offered(monkeypatch, (train, tabular(3))))
    assert data.train is train
    assert len(data.validation) == 3
    assert data.test is None
    with pytest.raises(zoo.ZooError, match=r"there is no test part: give --split validation"):
        data.needed("test")


@pytest.mark.parametrize("labelled", [True, False])
def test_batches_of_several_inputs_are_batches_and_words_in_them_are_left(monkeypatch, labelled):
    """As long as there is a batch axis in all of them, and more than that in one."""
    x, target = torch.zeros(4, 3), {"labels": torch.zeros(4, dtype=torch.int64)} if labelled else {}
    mapping = [{"a": x, "id": torch.arange(4), "name": ["x"] * 4} | target] * 5
    pairs = [((x, x), *target.values())] * 5
    for batches in (mapping, pairs):
        assert zoo.load_data(offered(monkeypatch, (batches, batches, batches))).train is batches
    samples = [{"ids": torch.zeros(3), "mask": torch.ones(3), "name": "x", "words": ["a", "b"]}] * 20
    found = zoo.load_data(offered(monkeypatch, (samples, samples))).train
    assert len(found) == 18
    assert set(found[0][0]) == {"ids", "mask"}


def test_targets_of_several_tensors_are_refused_with_a_remedy_that_works():
    from rankfold.zoo.data import data_of

    class Heads(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, index):
            if index >= 24:
                raise IndexError(index)
            x = torch.arange(4.0) + index
            return {"image": x}, {"mask": x[:2], "counts": x[2:]}

    with pytest.raises(zoo.ZooError, match=r"target of sample 0 is a dict of several tensors: give a DataLoader"):
        data_of("mine", (Heads(), Heads()))
    made = data_of("mine", tuple(DataLoader(Heads(), batch_size=6) for _ in range(3)))
    assert set(next(iter(made.train))[1]) == {"mask", "counts"}
