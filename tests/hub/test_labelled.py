"""Tables of texts with labels: what is read of each kind of file, how it is parted, and judged by what is right."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import failed, succeeded
from folders import LETTERS, SPECIAL, VOCABULARY, bert, tokenizer

import rankfold as rf
from rankfold.zoo import ZooError
from rankfold.zoo.text import reader_for

transformers = pytest.importorskip("transformers")
NAMES = {0: "bad", 1: "good", 2: "so so"}


def classifier(**settings):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, **{"id2label": NAMES} | settings,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def saved(place: Path, **settings) -> Path:
    classifier(**settings).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def rows(count: int) -> pd.DataFrame:
    """Texts with commas, quotes and lines, in the order of their classes."""
    words = [f'a cat, "{"abc"[i % 3]}"\nsat {"xyz"[i * 3 // count]}' for i in range(count)]
    return pd.DataFrame({"number": range(count), "text": words, "label": [NAMES[i * 3 // count] for i in range(count)]})


def written(table: pd.DataFrame, file: Path) -> Path:
    if file.suffix == ".parquet":
        table.to_parquet(file)
    elif file.suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ",")
    return file


def letters(sample) -> str:
    kept = [number - len(SPECIAL) for number in sample["input_ids"].tolist() if number >= len(SPECIAL)]
    return "".join(LETTERS[number] for number in kept)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
@pytest.mark.parametrize("kind", ["names", "numbers", "written"])
def test_each_row_is_a_text_with_its_class(ending, kind, tmp_path):
    table = rows(12)
    numbers = table.label.map({name: number for number, name in NAMES.items()})
    if kind != "names":
        table["label"] = numbers if kind == "numbers" else numbers.astype(str)
    found = rf.text(tokenizer(), written(table, tmp_path / f"t.{ending}"), length=40, model=classifier())
    assert found.labels.tolist() == numbers.tolist()
    assert [letters(x) for x in found.inputs_of] == [
        "".join(letter for letter in text if letter in LETTERS) for text in table.text
    ]
    inputs, labels = next(iter(found.batches(5)))
    assert len(inputs["input_ids"]) == len(labels) == 5
    assert found.subset(torch.tensor([7])).labels.tolist() == [numbers[7]]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_without_labels_the_column_of_texts_is_read_and_no_other(ending, tmp_path):
    """A language model was taught the numbers and commas of the file."""
    file = written(rows(12), tmp_path / f"t.{ending}")
    lines = rf.text(tokenizer(), file, length=40, lines=True)
    assert lines.labels is None
    assert len(lines) == 24  # lines of the texts
    unlabelled = written(rows(12).drop(columns="label"), tmp_path / f"u.{ending}")
    assert rf.text(tokenizer(), unlabelled, length=40, model=classifier()).labels is None


def test_pairs_are_read_as_the_tokenizer_joins_them(tmp_path):
    table = pd.DataFrame({"premise": ["a cat", "one dog"], "hypothesis": ["sat", "ran far"], "label": [0, 2]})
    found = rf.text(tokenizer(), written(table, tmp_path / "t.csv"), length=40, model=classifier())
    wanted = tokenizer()(list(table.premise), list(table.hypothesis), padding=True, return_tensors="pt")
    assert torch.equal(torch.stack([x["input_ids"] for x in found.inputs_of]), wanted["input_ids"])


def test_numbers_and_several_classes(tmp_path):
    table = rows(6).assign(label=[0.5, -1, 2, 3, 4, 1e-3])
    one = classifier(id2label={0: "score"})
    found = rf.text(tokenizer(), written(table, tmp_path / "n.csv"), length=40, model=one)
    assert found.labels.flatten().tolist() == pytest.approx(list(table.label))
    table = rows(6).assign(label=[["bad"], [], ["good", "so so"], [1, 0, 1], ["good"], [0, 0, 0]])
    several = classifier(problem_type="multi_label_classification")
    found = rf.text(
        tokenizer(), written(table.astype({"label": object}), tmp_path / "m.jsonl"), length=40, model=several
    )
    assert found.labels.int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_a_label_means_one_class_whatever_else_is_in_the_file(tmp_path):
    """Of a model of one to five stars, a file without a "5" counted its labels as numbers of classes."""
    stars = classifier(id2label={number: str(number + 1) for number in range(5)})
    for labels in ([1, 2, 3, 4], [1, 2, 3, 4, 5], ["1", "2", "3", "4"]):
        table = rows(len(labels)).assign(label=labels)
        found = rf.text(tokenizer(), written(table, tmp_path / "t.csv"), length=40, model=stars)
        assert found.labels.tolist() == [int(label) - 1 for label in labels]
    file = written(rows(3).assign(label=[0, 1, 2]), tmp_path / "t.csv")
    with pytest.raises(ZooError, match=r"row 1: the label '0' is none .* 1, 2, 3, 4, 5, whose names are numbers, so"):
        rf.text(tokenizer(), file, length=40, model=stars)
    mixed = rows(4).assign(label=["good", 0, "2", "1.0"])  # numbers and names together, where none is both
    assert rf.text(
        tokenizer(), written(mixed, tmp_path / "t.csv"), length=40, model=classifier()
    ).labels.tolist() == [1, 0, 2, 1]  # fmt: skip


def test_several_classes_are_listed_by_number_too(tmp_path):
    several = classifier(problem_type="multi_label_classification")
    table = rows(6).assign(label=[[0], [], [1, 2], [1, 0, 1], ["good", 2], [2.0, 0]])
    file = tmp_path / "m.jsonl"
    found = rf.text(tokenizer(), written(table, file), length=40, model=several)
    assert found.labels.int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 1], [1, 0, 1]]
    for label, said in (([3], "the label '3' is none of"), ([0, 1, 1, 0], "has a class twice"), ([[0]], "none of")):
        written(rows(2).assign(label=[[0], label]), file)
        with pytest.raises(ZooError, match=f"row 2: .*{said}"):
            rf.text(tokenizer(), file, length=40, model=several)
    two = classifier(problem_type="multi_label_classification", id2label={0: "bad", 1: "good"})
    written(rows(2).assign(label=[[0, 1], [1, 1]]), file)
    assert rf.text(tokenizer(), file, length=40, model=two).labels.tolist() == [[0, 1], [1, 1]]
    written(rows(2).assign(label=[[0], [0, 1]]), file)
    with pytest.raises(ZooError, match=r"row 2: the label \[0, 1\] is both classes by their numbers, or a 1 for one"):
        rf.text(tokenizer(), file, length=40, model=two)


def test_one_file_is_parted_by_lot_in_the_proportions_of_its_classes(tmp_path):
    file = written(rows(90), tmp_path / "t.csv")
    reader = reader_for(classifier(), tokenizer(), 40, None)
    data = reader.data(f"text:{file}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [72, 9, 9]
    for part in (data.train, data.validation, data.test):
        assert part.labels.bincount().tolist() == [len(part) // 3] * 3
        assert all("xyz"[label] in letters(x) for x, label in zip(part.inputs_of, part.labels.tolist(), strict=True))
    assert data.classes == 3
    assert data.objective.name == "classification"
    again = reader.data(f"text:{file}")
    assert torch.equal(torch.stack([x["input_ids"] for x in again.test.inputs_of]),
                       torch.stack([x["input_ids"] for x in data.test.inputs_of]))  # fmt: skip
    written(rows(30), tmp_path / "u.csv")
    two = reader.data(f"text:{file},{tmp_path}/u.csv")
    assert [len(part) for part in (two.train, two.validation, two.test)] == [81, 9, 30]
    few = reader_for(classifier(), tokenizer(), 40, 6).data(f"text:{file},{tmp_path}/u.csv")
    for part in (few.train, few.validation, few.test):  # the first six are of one class
        assert part.labels.bincount().tolist() == [2, 2, 2]
        assert all("xyz"[label] in letters(x) for x, label in zip(part.inputs_of, part.labels.tolist(), strict=True))


@pytest.mark.parametrize("value", ["high", "nan", "inf", ""])
def test_a_number_is_a_finite_one(value, tmp_path):
    file = written(rows(6).assign(label=["1", "2", "3", value, "4", "5"]), tmp_path / "n.csv")
    with pytest.raises(ZooError, match=rf"row 4: the model answers with one number, and the label is '{value}'"):
        rf.text(tokenizer(), file, length=40, model=classifier(id2label={0: "score"}))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (rows(9).replace("so so", "fine"), r"row 7: the label 'fine' is none of the model's classes, bad, good, so so, "
                                           r"nor a number from 0 to 2: write one of these, or name them"),
        (rows(9).assign(label=3), r"row 1: the label '3' is none of the model's classes"),
        (rows(9).assign(text=[1] * 9), None),
        (rows(0), "it holds no line of text"),
        (rows(9).rename(columns={"text": "review"}), r"a column named text was expected, and there are number, review, "
                                                     r"label: rename the column of texts"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_row(table, said, tmp_path):
    file = written(table, tmp_path / "t.csv")
    if said is None:  # digits in CSV are text
        assert len(rf.text(tokenizer(), file, length=40, model=classifier())) == 9
        with pytest.raises(ZooError, match=r"row 1: the column text holds '1', which is no text"):
            rf.text(tokenizer(), written(table, tmp_path / "t.parquet"), length=40, model=classifier())
        return
    with pytest.raises(ZooError, match=said):
        rf.text(tokenizer(), file, length=40, model=classifier())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "", "cannot be read as a table"), ("t.csv", 'text,label\n"a cat,good\n', "cannot be read as a table"),
        ("t.csv", "text,label\na,good\nb,good,c,d\n", "cannot be read as a table"),
        ("t.csv", "text,label\na, b,good\nc, d,bad\n", "cannot be read as a table"),
        ("t.csv", "text,label\na,good\nb\n", "row 2: the label '' is none of the model's classes"),
        ("t.tsv", b"text\tlabel\n\xff\xfe\tgood\n", "not text in UTF-8"),
        ("t.parquet", "no", "cannot be read as Parquet"),
        ("t.jsonl", '{"text": "a", "label": 0}\n[1]\n', "line 2: each line must be a JSON object with names and"),
    ],
)  # fmt: skip
def test_a_broken_table_is_told_in_one_line(name, content, said, tmp_path):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ZooError, match=said) as caught:
        rf.text(tokenizer(), file, length=40, model=classifier())
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_labels_beside_one_with_them_is_named(tmp_path):
    files = written(rows(30), tmp_path / "t.csv"), written(rows(9).drop(columns="label"), tmp_path / "u.csv")
    with pytest.raises(ZooError, match=rf"{files[1]}: it has no labels, and another file of"):
        reader_for(classifier(), tokenizer(), 40, None).data(f"text:{files[0]},{files[1]}")


def test_a_classifier_is_compressed_and_judged_by_its_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "model")
    written(rows(120), tmp_path / "train.csv")
    written(rows(30), tmp_path / "test.csv")
    data = ("--data", "text:train.csv,test.csv", "--length", 40)
    told = succeeded("compress", "model", *data, "--budget", "params=0.8", "-o", "small")
    small, model = rf.load("small").model.eval(), classifier()
    table = rows(30)
    inputs = tokenizer()(list(table.text), padding=True, truncation=True, max_length=40, return_tensors="pt")
    wanted = torch.tensor([{name: number for number, name in NAMES.items()}[name] for name in table.label])
    for network, part in ((model, "before"), (small, "compressed")):
        right = (network(**inputs).logits.argmax(1) == wanted).float().mean()
        assert told[part]["accuracy"] == pytest.approx(float(right)), part
    assert "is none of the model's classes" in failed(
        "plan", "model", "--data", f"text:{written(rows(9).replace('bad', 'awful'), tmp_path / 'o.csv')}",
        "--budget", "params=0.8", "-o", "p.json",
    )  # fmt: skip


def test_an_encoder_without_a_head_takes_no_labels(tmp_path):
    bert(tmp_path / "encoder")
    model = transformers.AutoModel.from_pretrained(tmp_path / "encoder")
    data = reader_for(model, tokenizer(), 40, None).data(f"text:{written(rows(40), tmp_path / 't.csv')}")
    assert data.train.labels is None
    assert data.objective.name == "embedding"
