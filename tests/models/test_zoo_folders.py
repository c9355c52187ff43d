"""Folders of pictures: what becomes of them, in memory and not, with a user's settings, and every fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import rankfold
from PIL import Image

from rankfold import zoo
from rankfold.cli import saved
from rankfold.train import Recipe, evaluate, fit
from rankfold.zoo import folders
from rankfold.zoo.pictures import Pictures, Transform

CLASSES = ("ant", "bee", "cat")


def picture(number: int, size: tuple[int, int] = (20, 14)) -> Image.Image:
    """Of a colour that tells its class, numbers 0, 3, 6, … are ants."""
    channel = number % 3
    return Image.new("RGB", size, tuple(200 if c == channel else number for c in range(3)))


def folder(place: Path, parts: dict[str, int]) -> Path:
    for part, count in parts.items():
        for number in range(count):
            below = place / part / CLASSES[number % 3]
            below.mkdir(parents=True, exist_ok=True)
            picture(number, (20 + number % 3, 14)).save(below / f"{number:03d}.png")
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path / "cache"))


def test_pictures_of_any_size_become_alike_and_classes_count_by_name(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", {"train": 30, "val": 6})
    data = zoo.load_data(f"imagefolder:{place},resize=14,crop=12,statistics=half")
    assert data.classes == 3
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 6)
    assert data.train.inputs.shape[1:] == (3, 12, 12)
    inputs, labels = next(iter(data.test.batches(6)))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert inputs.argmax(1)[:, 5, 5].tolist() == labels.tolist()  # the colour is the class
    assert inputs.max() == pytest.approx((200 / 255 - 0.5) / 0.5)


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
@pytest.mark.parametrize("middle", ["valid", "val", "dev", "validation"])
def test_three_parts_are_taken_as_they_are(kind: str, middle: str, tmp_path: Path) -> None:
    place = (folder if kind == "imagefolder" else parquet)(tmp_path / "set", {"train": 9, middle: 6, "test": 3})
    data = zoo.load_data(f"{kind}:{place},crop=8")
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 6, 3)


def test_two_names_of_one_part_are_refused_in_tables_too(tmp_path: Path) -> None:
    place = parquet(tmp_path / "set", {"train": 9, "val": 3, "validation": 3, "test": 3})
    with pytest.raises(zoo.ZooError, match="validation and val are names of one part"):
        zoo.load_data(f"parquet:{place},crop=8")


def test_names_are_labels_in_tables_as_in_folders(tmp_path: Path) -> None:
    import datasets

    place = tmp_path / "set"
    place.mkdir()
    for part, names in {"train": ["bee", "ant", "bee", "ant"], "val": ["cat", "ant"]}.items():
        rows = {"img": [picture(i) for i in range(len(names))], "label": names}
        datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image()).to_parquet(place / f"{part}-0.parquet")
    data = zoo.load_data(f"parquet:{place},crop=8")
    assert data.classes == 3
    assert data.test.labels.tolist() == [2, 0]  # in the order of all names, also of those that train lacks


def test_a_picture_without_a_label_is_named(tmp_path: Path) -> None:
    import datasets

    place = parquet(tmp_path / "set", {"train": 9})
    rows = {"img": [picture(0), picture(1)], "label": [1, None]}
    datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image()).to_parquet(place / "test-0.parquet")
    with pytest.raises(zoo.ZooError, match=r"test-0\.parquet: picture 1 has no label"):
        zoo.load_data(f"parquet:{place},crop=8")


@pytest.mark.parametrize("memory", [folders.MEMORY, 0])
def test_a_few_of_them_are_chosen_by_any_numbers(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "set", {"train": 30, "val": 6})
    monkeypatch.setattr(folders, "MEMORY", memory)
    train = zoo.load_data(f"imagefolder:{place},crop=8").train
    for few in (range(4), [0, 1, 2, 3], torch.arange(4), torch.arange(len(train)) < 4):
        part = train.subset(few)
        assert torch.equal(part.inputs[:], train.inputs[:4])
        assert torch.equal(part.labels, train.labels[:4])


def shades(place: Path, made: Image.Image) -> torch.Tensor:
    """One picture of a set that is this one, as it is read."""
    folder(place, {"train": 3, "val": 3})
    made.save(place / "train" / "ant" / "000.tiff")
    (place / "train" / "ant" / "000.png").unlink()
    return zoo.load_data(f"imagefolder:{place},resize=8,crop=8").train.inputs[0]


@pytest.mark.parametrize("wide", ["<u2", ">u2", "<i4"])
def test_grey_pictures_of_sixteen_bits_keep_their_shades(wide: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    found = shades(tmp_path / "set", Image.fromarray(ramp.astype(wide)))
    assert torch.equal(found[0], torch.from_numpy((ramp.astype(int) / 257).round().astype(np.uint8)))
    assert torch.equal(found[0], found[2])


def test_a_picture_whose_white_is_not_known_is_refused_and_a_function_gets_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    with pytest.raises(zoo.ZooError, match=r"000\.tiff: its pixels run from 0 to 1.*transform="):
        shades(tmp_path / "set", made)
    (tmp_path / "ownwide.py").write_text(
        "import numpy, torch\ndef read(image):\n"
        "    return torch.from_numpy(numpy.array(image.convert('F').resize((8, 8))))[None]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = zoo.load_data(f"imagefolder:{tmp_path / 'set'},transform=ownwide:read").train.inputs
    assert torch.allclose(found[0, 0], torch.from_numpy(np.array(made)))


def test_pictures_are_turned_as_the_camera_noted(tmp_path: Path) -> None:
    made = Image.new("RGB", (8, 8))
    made.paste((255, 0, 0), (0, 0, 8, 2))  # the upper edge, which the note says is the right one
    noted = made.getexif()
    noted[0x0112] = 6
    made.save(tmp_path / "noted.png", exif=noted)
    found = Transform(8, 8)(Image.open(tmp_path / "noted.png"))
    assert found[0, :, 7].min() == 255
    assert found[0, :, 0].max() == 0


def test_what_does_not_fit_is_read_when_it_is_asked_for_and_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder(tmp_path / "set", {"train": 30, "val": 6})
    spec = f"imagefolder:{place},resize=14,crop=12"
    held = zoo.load_data(spec)
    monkeypatch.setattr(folders, "MEMORY", 0)
    lazy = zoo.load_data(spec)
    assert isinstance(held.train.inputs, torch.Tensor)
    opened: list[Path] = []
    assert isinstance(lazy.train.inputs, Pictures)
    for part in ("train", "validation", "test"):
        one, other = getattr(held, part), getattr(lazy, part)
        assert torch.equal(one.inputs, other.inputs[:])
        assert torch.equal(one.labels, other.labels)
        assert one.inputs.shape == other.inputs.shape
        assert torch.equal(one[1][0], other[1][0])
    plain = lazy.train.inputs.open_
    counted = Pictures(
        lazy.train.inputs.sources, lambda file: (opened.append(file), plain(file))[1], lazy.train.inputs.transform
    )
    split = zoo.Split(counted, lazy.train.labels, lazy.train.mean, lazy.train.std)
    assert len(split.take(5, torch.Generator().manual_seed(0))) == 5
    assert not opened  # a part is chosen without a look at any picture
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 3))
    fit(model, split, None, Recipe(epochs=1, batch_size=9, learning_rate=0.01))
    assert len(opened) >= 27
    assert evaluate(model, lazy.test).count == 6


def test_a_function_of_ones_own_makes_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "set", {"train": 9, "val": 3})
    (tmp_path / "ownpictures.py").write_text(
        "import numpy, torch\ndef grey(image):\n"
        "    return torch.from_numpy(numpy.array(image.convert('L').resize((4, 5)))).unsqueeze(0).float()\n"
    )
    monkeypatch.chdir(tmp_path)
    data = zoo.load_data(f"imagefolder:{place},transform=ownpictures:grey")
    assert data.train.inputs.shape[1:] == (1, 5, 4)
    assert data.channels == 1
    assert torch.equal(data.test[0][0], data.test.inputs[0])  # floats are taken as they are


def parquet(place: Path, parts: dict[str, int], label: str = "label") -> Path:
    import datasets

    place.mkdir(parents=True, exist_ok=True)
    for part, count in parts.items():
        rows = {"img": [picture(i) for i in range(count)], label: [i % 3 for i in range(count)]}
        features = datasets.Features({"img": datasets.Image(), label: datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(place / f"{part}-00000-of-00001.parquet")
    return place


def test_what_was_made_from_pictures_opens_again_and_asks_only_for_a_function_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "set", {"train": 30, "test": 6})
    (tmp_path / "own.py").write_text("raise RuntimeError('must not run')\n")
    asked = "model: resnet20\nepochs: 1\nbatch_size: 16\nout: run\ndata: "
    (tmp_path / "run.yaml").write_text(f"{asked}'imagefolder:set,crop=8'\n")
    assert rankfold("train", "run.yaml").exit_code == 0
    again = rankfold("evaluate", "run")
    assert again.exit_code == 0, again.stderr
    assert "imagefolder:set,crop=8" in again.stdout
    assert saved.code_named(None, "parquet:set") is None
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("crop=8", "transform=own:made"))
    refused = rankfold("evaluate", "run")
    assert refused.exit_code == 1
    assert "if that code may run, add --data imagefolder:set,transform=own:made" in refused.stderr


def test_parquet_folders_are_read_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    place = parquet(tmp_path / "set", {"train": 30, "test": 6}, "fine_label")
    for memory in (folders.MEMORY, 0):
        monkeypatch.setattr(folders, "MEMORY", memory)
        data = zoo.load_data(f"parquet:{place},resize=14,crop=12,statistics=none")
        assert (len(data.train), len(data.validation), len(data.test), data.classes) == (27, 3, 6, 3)
        inputs, labels = next(iter(data.test.batches(6)))
        assert inputs.argmax(1)[:, 5, 5].tolist() == labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("parts", "settings", "sentence"),
    [
        (None, "", "there is no folder"),
        ({"train": 9}, "", "parts train and test, .* found train"),
        ({"val": 9}, "", "found validation"),
        ({"train": 9, "training": 9, "test": 3}, "", "train and training are names of one part, train"),
        ({"train": 9, "valid": 3, "dev": 3}, "", "valid and dev are names of one part, validation"),
        ({"train": 1, "val": 1}, "", "at least two folders"),
        ({"train": 9, "val": 3}, ",size=3", "there is no setting 'size=3'"),
        ({"train": 9, "val": 3}, ",crop=0", "there is no setting 'crop=0'"),
        ({"train": 9, "val": 3}, ",resize=8,crop=9", "crop=9 is larger than resize=8"),
        ({"train": 9, "val": 3}, ",transform=nowhere:f", "nowhere"),
        ({"train": 9, "val": 3}, ",statistics=mine", "statistics are imagenet"),
    ],
)
def test_faults_are_one_sentence(parts: dict[str, int] | None, settings: str, sentence: str, tmp_path: Path) -> None:
    place = tmp_path / "set"
    if parts is not None:
        folder(place, parts)
    with pytest.raises(zoo.ZooError, match=sentence) as caught:
        zoo.load_data(f"imagefolder:{place}{settings}")
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", {"train": 9, "val": 3})
    (place / "train" / "bee" / "004.png").write_bytes(b"no picture")
    with pytest.raises(zoo.ZooError, match=r"004\.png cannot be read"):
        zoo.load_data(f"imagefolder:{place},crop=8")
    parquet(tmp_path / "other", {"train": 9, "test": 3}, "kind")
    with pytest.raises(zoo.ZooError, match="columns img, kind: one of"):
        zoo.load_data(f"parquet:{tmp_path / 'other'},crop=8")
    with pytest.raises(zoo.ZooError, match="channels, height, width"):
        Pictures([0], lambda _: picture(0), Transform(own=lambda image: torch.zeros(3)))[0]


def test_cifar100_is_read_as_the_other_sets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from rankfold.zoo import images

    small = replace(images.IMAGE_SETS["cifar100"], counts=(("train", 30), ("test", 6)), shape=(3, 14, 20))
    monkeypatch.setitem(images.IMAGE_SETS, "cifar100", small)
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    place = parquet(tmp_path / "cifar100", {"train": 30, "test": 6}, "fine_label")
    for part in ("train", "test"):
        (place / f"{part}-00000-of-00001.parquet").rename(place / f"{part}.parquet")
    found = images.load_images("cifar100")
    assert found["test"][1].tolist() == [0, 1, 2, 0, 1, 2]
    assert (small.classes, small.label_column, small.hub) == (100, "fine_label", "uoft-cs/cifar100")


def test_table_4_runs_on_a_stand_in_of_the_same_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with train and val, a network of one's own, its sizes and rows."""
    place = folder(tmp_path / "set", {"train": 60, "val": 12})
    (tmp_path / "standin.py").write_text("def grey(image):\n    return image.convert('L').resize((8, 8))\n")
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "lorita-table-4", "--models", "rankfold.papers.quick:cnn", "--epochs", 1]
    data = ["--data", f"imagefolder:{place},transform=standin:grey"]
    shown = rankfold(*words, *data, "--depths", "1,3", "--finetune-epochs", 1, "-o", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    rows = [line for line in shown.stdout.splitlines() if line.startswith("| cnn, N=")]
    assert len(rows) == 2
    published = (tmp_path / "out" / "published.csv").read_text()
    assert "LoRITa+ISVT,3.0,67.82,66.47" in published
    without = rankfold(*words)
    assert without.exit_code == 2
    assert "imagefolder:DIR" in without.stderr
