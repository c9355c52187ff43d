"""Text as data: windows and lines, what is predicted and counted, and what is refused before any work."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from folders import LETTERS, SPECIAL, VOCABULARY, bert, llama, text, tokenizer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rankfold as rf
from rankfold.batches import batches_of
from rankfold.zoo import ZooError, load_data
from rankfold.zoo.pretrained import located, open_pretrained, tokenizer_of
from rankfold.zoo.text import Reader, reader_for

transformers = pytest.importorskip("transformers")


def ids(words: str) -> list[int]:
    return [len(SPECIAL) + LETTERS.index(letter) for letter in words]


def written(place, name: str, words: str):
    file = place / name
    if name.endswith("parquet"):
        pd.DataFrame({"text": words.splitlines(), "other": [1] * len(words.splitlines())}).to_parquet(file)
    elif name.endswith("jsonl"):
        file.write_text("".join(json.dumps({"text": line}) + "\n" for line in words.splitlines()))
    else:
        file.write_text(words)
    return file


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.parquet", "corpus.jsonl"])
def test_windows_are_the_text_in_order_without_special_tokens(name, tmp_path):
    words = text()
    found = rf.text(tokenizer(), written(tmp_path, name, words), length=16)
    assert len(found) == len(words) // 16
    joined = torch.cat([sample[0]["input_ids"] for sample in (found[i] for i in range(len(found)))])
    assert joined.tolist() == ids(words)[: len(joined)]
    assert len(rf.text(tokenizer(), tmp_path / name, length=16, samples=3)) == 3


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_column_of_texts_is_named_text_in_every_kind_of_file(ending, tmp_path):
    """A single column of another name is refused alike."""
    table, file = pd.DataFrame({"content": ["the cat sat"] * 9}), tmp_path / f"other.{ending}"
    table.to_parquet(file) if ending == "parquet" else table.to_json(file, orient="records", lines=True)
    with pytest.raises(ZooError, match=r"text.*there are content: rename the"):
        rf.text(tokenizer(), file, length=4)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.txt", "text"), ("a.csv", "text"), ("a.jsonl", "text"), ("a.npy", "tokens"), ("b", "image")]
)
def test_a_file_or_folder_without_its_kind_is_told_how_it_is_given(name, kind, tmp_path):
    place = tmp_path / name
    place.mkdir() if kind == "image" else place.touch()
    with pytest.raises(ZooError, match=rf"{place}: this is a .*give it as {kind}(folder)?:{place}"):
        load_data(str(place))


def test_pieces_of_a_long_text_are_joined(tmp_path, monkeypatch):
    from rankfold.zoo.texts import documents

    monkeypatch.setattr(documents, "_CHUNK", 50)
    words = text()
    found = rf.text(tokenizer(), written(tmp_path, "a.txt", words), length=7)
    assert torch.cat([x["input_ids"] for x in found.inputs_of]).tolist() == ids(words)[: len(words) // 7 * 7]
    assert len(list(documents.documents(tmp_path / "a.txt"))) > 10


def test_lines_are_padded_and_masked(tmp_path):
    file = written(tmp_path, "lines.txt", "abc\n\n  \nabcdefgh\nab")
    found = rf.text(tokenizer(), file, length=6, lines=True)
    masks = [sample["attention_mask"].tolist() for sample in found.inputs_of]
    assert masks == [[1, 1, 1, 1, 1, 0], [1] * 6, [1, 1, 1, 1, 0, 0]]
    assert found.inputs_of[0]["input_ids"].tolist()[:5] == [2, *ids("abc"), 3]
    with pytest.raises(ZooError, match="no padding"):
        rf.text(tokenizer(padding=False), file, lines=True)


def test_batches_stay_small_where_the_vocabulary_is_large():
    reader = Reader(None, length=8, vocabulary=1 << 20)
    large = reader._limited([{"input_ids": torch.zeros(8, dtype=torch.long)} for _ in range(10)], "windows")
    assert [len(batch["input_ids"]) for batch in batches_of(large, 128)] == [4, 4, 2]


def test_one_file_is_cut_into_parts_and_several_are_parts(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(400, dtype=np.int16) % 30)
    np.save(tmp_path / "b.npy", np.full(64, 7))
    reader = Reader(None, length=4, vocabulary=30)
    one = reader.data(f"tokens:{tmp_path}/a.npy")
    assert [len(part) for part in (one.train, one.validation, one.test)] == [80, 10, 10]
    rows = [x["input_ids"] for part in (one.train, one.validation, one.test) for x in part.inputs_of]
    assert torch.equal(torch.cat(rows), torch.arange(400) % 30)  # contiguous, nothing twice
    two = reader.data(f"tokens:{tmp_path}/a.npy,{tmp_path}/b.npy")
    assert [len(part) for part in (two.train, two.validation, two.test)] == [90, 10, 16]
    assert set(two.test.inputs_of[0]["input_ids"].tolist()) == {7}
    few = Reader(None, length=4, windows=5, vocabulary=30).data(f"tokens:{tmp_path}/a.npy")
    assert [len(part) for part in (few.train, few.validation, few.test)] == [5, 5, 5]
    assert torch.equal(few.test.inputs_of[0]["input_ids"], one.test.inputs_of[0]["input_ids"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("short.txt", "ab", "its 2 tokens are fewer than one window of 8"),
        ("few.txt", "abcdefghabcdefgh", "too few to learn from"),
        ("latin.txt", b"caf\xe9 \xff", "not text in UTF-8"),
        ("x.parquet", b"nothing", "cannot be read as Parquet"),
        ("x.jsonl", '{"text": "abc"}\n{"words": "abc"}\n', 'line 2: each line must be a JSON object with "text"'),
        ("x.npy", b"nothing", "this is no .npy of numbers"),
        ("floats.npy", np.ones(40), "whole numbers"),
        ("foreign.npy", np.full(40, 99), "the token 99, and the model knows tokens below 33"),
        ("gone.txt", None, "No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_one_line(name, content, said, tmp_path):
    file = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content)
    reader = Reader(tokenizer(), length=8, vocabulary=VOCABULARY)
    with pytest.raises(ZooError, match=said) as caught:
        load_data(f"{'tokens' if name.endswith('npy') else 'text'}:{file}", reader=reader)
    assert "\n" not in str(caught.value)


def test_a_model_says_how_it_reads(tmp_path):
    decoder, _ = open_pretrained(str(llama(tmp_path / "llama")))
    encoder, _ = open_pretrained(str(bert(tmp_path / "bert")))
    reading = reader_for(decoder, tokenizer(), None, None)
    assert (reading.length, reading.lines, reading.vocabulary) == (64, False, VOCABULARY)
    assert str(reading.objective) == "causal-lm"
    lines = reader_for(encoder, tokenizer(), 32, 5)
    assert (lines.length, lines.lines, str(lines.objective)) == (32, True, "embedding")
    with pytest.raises(ZooError, match="takes at most 64 tokens"):
        reader_for(decoder, tokenizer(), 65, None)
    with pytest.raises(ZooError, match="takes no tokens"):
        reader_for(nn.Linear(2, 2), None, None, None)
    with pytest.raises(ZooError, match=r"has no tokenizer that can be read .*save_pretrained\(FOLDER\) does"):
        tokenizer_of(tmp_path)
    with pytest.raises(ZooError, match=r"tokenizer must be one of transformers, and is a NoneType: give AutoTokenizer"):
        rf.text(None, tmp_path / "a.txt")
    with pytest.raises(ZooError, match="the model has no tokenizer"):
        load_data(f"text:{written(tmp_path, 'a.txt', text())}", reader=reader_for(decoder, None, None, None))


def test_a_data_set_of_the_hub_is_read_offline_unless_asked(tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants

    asked = []

    def load(path, configuration, split):
        asked.append((path, configuration, split, constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE))
        if path == "some/gone":
            raise ConnectionError("cannot reach it\nmore")
        return datasets.Dataset.from_dict({"text": text().splitlines()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    reader = Reader(tokenizer(), length=16, vocabulary=VOCABULARY)
    found = load_data("text:some/corpus@small", reader=reader)
    assert torch.cat([x["input_ids"] for x in found.train.inputs_of]).tolist() == ids(text())[: 16 * len(found.train)]
    load_data("text:some/corpus", reader=reader, download=True)
    assert asked == [("some/corpus", "small", "train", True, True), ("some/corpus", None, "train", False, False)]
    with pytest.raises(
        ZooError, match=r"this is neither a file nor in the cache of the hub \(cannot reach it\): add --download"
    ):
        load_data("text:some/gone", reader=reader)


def test_models_of_the_hub_are_told_apart_by_what_is_wrong(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def raising(error):
        def fetch(name, local_files_only, allow_patterns):
            assert local_files_only
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    def of(kind):
        return kind("page of text\nmore", response=SimpleNamespace(headers={}, request=None, status_code=403, url=""))

    for error, said in (
        (errors.LocalEntryNotFoundError("x"), "add --download to fetch it"),
        (of(errors.GatedRepoError), "gated: accept its terms"),
        (of(errors.RepositoryNotFoundError), "no such model"),
        (OSError("no route"), r"cannot be fetched from the hub \(no route\)"),
    ):
        raising(error)
        with pytest.raises(ZooError, match=said) as caught:
            located("some/model")
        assert "\n" not in str(caught.value)


# ---- figures --------------------------------------------------------------------------------------------------------


class Uniform(nn.Module):
    """Every token equally likely, whatever came before."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.weight.expand(*input_ids.shape, -1)}


@given(st.integers(2, 60), st.integers(2, 5), st.integers(3, 9))
def test_the_perplexity_of_a_uniform_model_is_its_vocabulary(vocabulary, windows, length):
    data = [{"input_ids": torch.randint(vocabulary, (windows, length))}]
    found = rf.evaluate(Uniform(vocabulary), data, objective="causal-lm")
    assert found["perplexity"] == pytest.approx(vocabulary, rel=1e-5)
    assert found["perplexity_error"] == pytest.approx(0, abs=1e-3 * vocabulary)
    assert found.count == windows * (length - 1)  # the first token of a window is not predicted


def windows_of(model, count: int = 6, length: int = 12) -> torch.Tensor:
    return torch.randint(len(SPECIAL), VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def padded(rows: torch.Tensor, lengths: list[int]) -> dict[str, torch.Tensor]:
    mask = (torch.arange(rows.shape[1]) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": rows * mask, "attention_mask": mask}


def test_padding_counts_nowhere_in_the_figures(tmp_path):
    model, _ = open_pretrained(str(llama(tmp_path)))
    other = rf.apply_(
        open_pretrained(str(tmp_path))[0],
        rf.plan(
            model, rf.Ranks({"model.layers.0.mlp.up_proj": 2}), "truncate", example={"input_ids": windows_of(model)}
        ),
    )
    rows, lengths = windows_of(model), [12, 5, 9, 12, 3, 7]
    alone = [{"input_ids": row[:n].unsqueeze(0)} for row, n in zip(rows, lengths, strict=True)]
    one, each = (
        rf.evaluate(other, data, objective="causal-lm", teacher=model) for data in ([padded(rows, lengths)], alone)
    )
    assert one.count == each.count == sum(lengths) - 6
    for name in ("perplexity", "perplexity_error", "kl", "agreement", "accuracy"):
        assert one[name] == pytest.approx(each[name], rel=1e-4), name
    unmasked = rf.evaluate(other, [{"input_ids": padded(rows, lengths)["input_ids"]}], objective="causal-lm")
    assert abs(unmasked["perplexity"] - one["perplexity"]) > 0.01  # what is told apart


def test_divergence_and_agreement_are_those_of_the_definition(tmp_path):
    model, _ = open_pretrained(str(llama(tmp_path)))
    rows = windows_of(model)
    plan = rf.plan(model, rf.Ranks({"model.layers.0.mlp.up_proj": 2}), "truncate", example={"input_ids": rows})
    small = rf.apply_(open_pretrained(str(tmp_path))[0], plan)
    with torch.no_grad():
        old, new = (m(input_ids=rows).logits[:, :-1].double().log_softmax(-1) for m in (model, small))
    found = rf.evaluate(small, [{"input_ids": rows}], objective="causal-lm", teacher=model)
    assert found["kl"] == pytest.approx(float((old.exp() * (old - new)).sum(-1).mean()), rel=1e-4)
    assert found["agreement"] == pytest.approx(float((old.argmax(-1) == new.argmax(-1)).double().mean()))
    each = -new.gather(-1, rows[:, 1:].unsqueeze(-1)).squeeze(-1).mean(1)  # windows of one length
    assert found["perplexity"] == pytest.approx(math.exp(each.mean()), rel=1e-5)
    assert found["perplexity_error"] == pytest.approx(math.exp(each.mean()) * float(each.std() / 6**0.5), rel=1e-4)
    itself = rf.evaluate(model, [{"input_ids": rows}], objective="causal-lm", teacher=model)
    assert (itself["kl"], itself["agreement"]) == (0, 1)
    assert "kl" not in rf.evaluate(model, [{"input_ids": rows}], objective="causal-lm").values


def test_the_teacher_is_asked_once_and_not_at_all_where_it_is_the_model(tmp_path):
    model, _ = open_pretrained(str(llama(tmp_path)))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    data = [{"input_ids": windows_of(model)}] * 3
    rf.evaluate(model, data, objective="causal-lm", teacher=model)
    assert len(calls) == 3


def test_budgets_of_the_layers_that_can_be_factored(tmp_path):
    model, example = open_pretrained(str(llama(tmp_path)))
    layers = sum(p.numel() for name, p in model.named_parameters() if "proj" in name or "lm_head" in name)
    whole = sum(p.numel() for p in model.parameters())
    plan = rf.plan(model, ["params=0.7", "of=sites"], "truncate", example=example)
    kept = layers - (plan.before.params - plan.after.params)
    assert plan.before.params == whole
    assert 0.66 * layers < kept <= 0.7 * layers
    assert plan.kept_of_factorable() == pytest.approx(kept / layers)
    assert rf.Plan.from_json(plan.to_json()) == plan
    ordinary = rf.plan(model, "params=0.7", "truncate", example=example)
    assert ordinary.after.params <= 0.7 * whole < whole - layers + 0.7 * layers
    with pytest.raises(ValueError, match="does not say how small"):
        rf.plan(model, "of=sites", "truncate", example=example)
    with pytest.raises(ValueError, match="leave of=sites"):
        rf.plan(model, ["latency=0.9", "of=sites"], "truncate", example=example)
    said = r"^params ≤ 0.001 of the layers that can be factored: .* they take .* of their param.*params=(0\.\d+) is"
    with pytest.raises(rf.BudgetError, match=said) as error:
        rf.plan(model, ["params=0.001", "of=sites"], "truncate", example=example)
    least = re.search(said, str(error.value))[1]  # a fraction of these layers too
    plan = rf.plan(model, [f"params={least}", "of=sites"], "truncate", example=example)
    assert float(least) - 1e-4 <= plan.kept_of_factorable() <= float(least)
