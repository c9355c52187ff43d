"""A folder goes through block by block: what becomes of it is what becomes of it whole, and no more is ever held."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import failed, rankfold, succeeded
from folders import VOCABULARY, tokenizer
from safetensors.torch import load_file, save_file

import rankfold as rf
from rankfold import hub
from rankfold.compress.layerwise import in_blocks, layers
from rankfold.compress.planning.profile import Profile
from rankfold.observe import Pages, Replay
from rankfold.observe.pages import PagesError
from rankfold.pipeline import BoundError, Settings
from rankfold.pipeline.needs import LIBRARIES
from rankfold.report.quantities import bytes_of
from rankfold.run.progress import Tell
from rankfold.sites import Names, fingerprint

transformers = pytest.importorskip("transformers")
MEMORY = 260_000_000
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 5], "do_sample": True, "temperature": 0.6, "max_new_tokens": 33}


def drawn(samples: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Texts of 5 to 12 tokens, padded."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (samples, 12), generator=draw)
    mask = (torch.arange(12) < torch.randint(5, 13, (samples, 1), generator=draw)).long()
    return [{"input_ids": x, "attention_mask": m} for x, m in zip((ids * mask).split(4), mask.split(4), strict=True)]


DATA = (drawn(16, 0), drawn(4, 1), drawn(4, 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three blocks, biases beside q, k and v, the head tied to the embedding; in three shards, with others' files."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "dense"
    model = transformers.Qwen2ForCausalLM(config)
    torch.nn.init.normal_(model.model.layers[1].self_attn.q_proj.bias)
    model.save_pretrained(folder, max_shard_size="50KB")
    tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        (folder / name).write_bytes(b"nobody reads this")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def streamed(place, tmp_path_factory):
    """What was told, read and held on the way, and the result."""
    said, held, read = [], [], []
    turn, cut = Pages.turn, Pages.cut

    def turned(pages, number, *others):
        turn(pages, number, *others)
        distinct = {p.data_ptr(): p.numel() * 4 for module, name, _ in pages.held for p in [module._parameters[name]]}
        held.append(sum(distinct.values()))

    def counting(pages, *args):
        cut(pages, *args)
        before = pages.read
        pages.read = lambda name: (read.append(name), before(name))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pages, "turn", turned)
        patch.setattr(Pages, "cut", counting)
        out = tmp_path_factory.mktemp("streamed") / "small"
        result = rf.stream(place, DATA, "params=0.8", out, memory=MEMORY, tell=Tell(say=said.append))
    return result, said, held, read


def test_gradients_through_the_blocks_are_those_of_the_whole(place, tmp_path):
    whole, paged = hub.opened(place), hub.paged(place)
    assert fingerprint(whole) == fingerprint(paged)
    how = rf.Calibration(samples=16, memory=MEMORY)
    objective = rf.CausalLanguageModel()
    known = rf.profile(paged, DATA[0], method="sequential", objective=objective, calibration=how, directory=tmp_path)
    other = rf.profile(whole, DATA[0], method="sequential", objective=objective, calibration=how)
    assert all(p.is_meta for p in paged.parameters())
    assert known.metrics.keys() == other.metrics.keys() == {site.name for site in known.sites.reducible}
    for site in known.sites.reducible:
        mine, theirs = (each.candidate(site.name, rf.Form.FACTORED).errors for each in (known, other))
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)
        apart = (known.metrics[site.name] - other.metrics[site.name]).norm()
        assert apart <= 1e-5 * other.metrics[site.name].norm()


def test_what_it_becomes_is_what_it_becomes_whole(place, streamed):
    result, said, *_ = streamed
    whole = hub.opened(place)
    names = [entry.site for entry in result.plan.entries]
    assert len(names) == 21
    assert "lm_head" not in names
    how = rf.Calibration(samples=16, batch_size=result.needs["batch"], memory=MEMORY)
    known = rf.profile(
        whole, DATA[0], method="sequential", objective=rf.CausalLanguageModel(), calibration=how,
        where=lambda name, module: name in names,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # that comparison needs the whole
        patch.setattr(layers._Fit, "_in_one_shot", lambda self: None)
        plan = known.plan("params=0.8")
    forms = [(entry.site, entry.form, entry.rank) for entry in plan.entries]
    assert [(entry.site, entry.form, entry.rank) for entry in result.plan.entries] == forms
    small = transformers.AutoModelForCausalLM.from_pretrained(result.directory).eval()
    batch = DATA[2][0]
    torch.testing.assert_close(small(**batch).logits, rf.apply_(whole, plan)(**batch).logits, rtol=1e-3, atol=1e-3)
    assert rf.evaluate(small, DATA[2], objective=rf.CausalLanguageModel())["perplexity"] == pytest.approx(
        result.after["perplexity"], rel=1e-5
    )
    assert result.plan.after.params == rf.model_cost(small, batch).params <= 0.8 * result.plan.before.params
    assert "saved in" in said[-1]


def test_no_more_is_held_than_a_block_and_each_is_read_as_often(streamed):
    result, said, held, read = streamed
    assert result.needs["block"] == max(held)
    assert held.count(max(held)) <= len(held) / 2
    kinds = {name: read.count(name) for name in read}
    first, second = (kinds[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert first == second  # forward, backward, fit: whatever the depth
    assert said[0].startswith("memory: the process grows by at most")
    assert "disk:" in said[0]


def test_the_folder_is_whole_and_nothing_else_is_in_it(place, streamed):
    result, said, *_ = streamed
    out = result.directory
    assert sorted(said[1:3]) == [
        "adapter_model.safetensors: it lies beside the model and is neither read nor copied",
        "optimizer.pt: it lies beside the model and is neither read nor copied",
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {name: value for file in set(index.values()) for name, value in load_file(out / file).items()}
    assert index.keys() == tensors.keys()
    original = hub.opened(place).state_dict()
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(tensors[name], original[name])
    changed = {entry.site: entry for entry in result.plan.changed}
    factored = [site for site, entry in changed.items() if entry.form is not rf.Form.DENSE]
    assert factored
    poisons = [name for name, value in tensors.items() if not value.numel()]
    assert [name.removesuffix(".weight") for name in poisons] == [factored[0]]  # refused without the plug-in
    assert "lm_head.weight" not in tensors
    assert rf.load(out).plan == result.plan
    assert {"config.json", "README.md", "tokenizer.json"} <= {p.name for p in out.iterdir()}
    assert json.loads((out / "generation_config.json").read_text()) == GENERATION
    assert not (out / "optimizer.pt").exists()
    assert [path.name for path in (out / "run").rglob("*")] == ["request.json"]


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "result.json"}


LITTLE = Settings("sequential", where=Names(("*.o_proj", "*.up_proj")))


def counting() -> list[int]:
    """One entry for each batch that goes through a block from now on."""
    runs, run = [], Replay.run

    def counted(self, span, index, *args, **kwargs):
        runs.append(index)
        return run(self, span, index, *args, **kwargs)

    Replay.run = counted
    return runs


@pytest.fixture(scope="module")
def little(place, tmp_path_factory):
    """A job of two layers in each block, and how many batches went through blocks."""
    out = tmp_path_factory.mktemp("little") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replay, "run", Replay.run)
        runs = counting()
        result = rf.stream(place, DATA, "params=0.9", out, memory=MEMORY, settings=LITTLE)
    return result, len(runs)


@pytest.mark.parametrize("where", [("rankfold.hub.streamed.Shards.put", 2), ("write_part", 2)], ids=["fit", "measure"])
def test_a_job_that_is_killed_goes_on_to_the_same_bytes(place, little, tmp_path, where):
    name, calls = where
    out, done = tmp_path / "small", []
    child = os.fork()
    if not child:  # pragma: no cover
        owner, key = (hub.Shards, "put") if "put" in name else (in_blocks, "write_part")
        before = getattr(owner, key)

        def killed(*args):
            before(*args)
            done.append(1)
            if len(done) == calls:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, key, killed)
        rf.stream(place, DATA, "params=0.9", out, memory=MEMORY, settings=LITTLE)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (out / "config.json").exists()
    fitted, measured, put, write = [], [], hub.Shards.put, in_blocks.write_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub.Shards, "put", lambda self, number, *rest: (fitted.append(number), put(self, number, *rest)))
        patch.setattr(in_blocks, "write_part", lambda file, known: (measured.append(file), write(file, known)))
        again = rf.stream(place, DATA, "params=0.9", out, memory=MEMORY, settings=LITTLE)
    spans = len(list(out.glob("model-*.safetensors"))) - 1
    assert fitted == list(range(2 if "put" in name else 0, spans + 1))
    assert len(measured) == (0 if "put" in name else spans - calls)
    assert files(out) == files(little[0].directory)
    assert again.after == little[0].after
    assert (
        rf.stream(place, DATA, "params=0.9", out, memory=MEMORY, settings=LITTLE).plan == again.plan
    )  # only read back
    with pytest.raises(rf.StoreError, match="with other settings"):
        rf.stream(place, DATA, "params=0.7", out, memory=MEMORY, settings=LITTLE)


def test_two_processes_share_the_data_and_end_as_one_does(place, little, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:  # pragma: no cover
            os.environ.update(told | {"RANK": str(rank)})
            runs = counting()
            with suppress(BaseException):
                found = rf.stream(place, DATA, "params=0.9", tmp_path / "small", memory=MEMORY, settings=LITTLE)
                seen = {"after": found.after.values, "runs": len(runs)}
                (tmp_path / f"{rank}.json").write_text(json.dumps(seen))
                os._exit(0)
            os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone, runs = little
    for process in found:
        assert process["after"] == pytest.approx(alone.after.values, rel=1e-4)
    assert sum(process["runs"] for process in found) == runs
    assert max(process["runs"] for process in found) < 0.75 * runs  # what is watched goes along with the first
    plans = [rf.load(each).plan for each in (tmp_path / "small", alone.directory)]
    assert [(e.form, e.rank) for e in plans[0].entries] == [(e.form, e.rank) for e in plans[1].entries]
    pair = [transformers.AutoModelForCausalLM.from_pretrained(x) for x in (tmp_path / "small", alone.directory)]
    torch.testing.assert_close(*(model(**DATA[2][0]).logits for model in pair), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """Experts that lie in the files one by one, as two matrices each."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "mixture"
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    assert sum("experts.2" in name for name in load_file(folder / "model.safetensors")) == 6
    return folder


def test_experts_are_put_together_and_go_through_block_by_block(mixture, tmp_path):
    whole = hub.opened(mixture)
    assert fingerprint(hub.paged(mixture)) == fingerprint(whole)
    asked = Settings("sequential", where=Names(("*.experts.*", "*.o_proj")))
    found = rf.stream(mixture, DATA, "params=0.8", tmp_path / "small", memory=MEMORY, settings=asked)
    forms = {entry.site: entry.form for entry in found.plan.entries}
    assert len(forms) == 6
    assert forms["model.layers.0.mlp.experts.leave"] is rf.Form.KEEP  # one side of them is as it was
    assert forms["model.layers.0.mlp.experts.enter"] is rf.Form.SHARED
    how = rf.Calibration(samples=16, batch_size=found.needs["batch"], memory=MEMORY)
    known = rf.profile(whole, DATA[0], method="sequential", objective=rf.CausalLanguageModel(), calibration=how,
                       where=lambda name, module: name in forms)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers._Fit, "_in_one_shot", lambda self: None)
        plan = known.plan("params=0.8")
    assert [(e.form, e.rank) for e in plan.entries] == [(e.form, e.rank) for e in found.plan.entries]
    assert (plan.before, plan.after) == (found.plan.before, found.plan.after)
    small, batch = transformers.AutoModelForCausalLM.from_pretrained(found.directory), DATA[2][0]
    assert small.num_parameters() == found.plan.after.params
    torch.testing.assert_close(small(**batch).logits, rf.apply_(whole, plan)(**batch).logits, rtol=1e-3, atol=1e-4)


def test_experts_that_nothing_becomes_of_are_whole_in_the_result(mixture, tmp_path):
    asked = Settings("sequential", where=Names(("*.o_proj",)))
    found = rf.stream(mixture, DATA, "params=0.99", tmp_path / "small", memory=MEMORY, settings=asked)
    small = transformers.AutoModelForCausalLM.from_pretrained(found.directory)
    here, there = (each.model.layers[1].mlp.experts for each in (small, hub.opened(mixture)))
    assert torch.equal(here.gate_up_proj, there.gate_up_proj)
    assert torch.equal(here.down_proj, there.down_proj)
    assert rf.evaluate(small, DATA[2], objective=rf.CausalLanguageModel())["perplexity"] == pytest.approx(
        found.after["perplexity"], rel=1e-5
    )


def test_an_expert_that_lacks_a_piece_is_named(mixture, tmp_path):
    shutil.copytree(mixture, tmp_path / "bad")
    tensors = load_file(mixture / "model.safetensors")
    del tensors[next(name for name in tensors if "experts.1" in name)]
    save_file(tensors, tmp_path / "bad" / "model.safetensors", {"format": "pt"})
    with pytest.raises(hub.HubError, match="experts") as error:
        rf.stream(tmp_path / "bad", DATA, "params=0.8", tmp_path / "out", memory=MEMORY)
    assert "\n" not in str(error.value)


def test_a_bound_below_one_block_names_its_parts_and_the_smallest_that_works(place, tmp_path):
    with pytest.raises(
        BoundError, match=r"--memory 100\.0\skB is too small: .* Give at least --memory \d+MB$"
    ) as error:
        rf.stream(place, DATA, "params=0.9", tmp_path / "small", memory=100_000, settings=LITTLE)
    told = str(error.value)
    assert "\n" not in told
    assert not (tmp_path / "small").exists()
    parts = [bytes_of(size) for size in re.findall(r"(?:by|,|and) ([\d.]+\s[kMG]?B) for", told)]
    smallest = bytes_of(told.rsplit(" ", 1)[1])
    assert len(parts) == 4
    assert smallest - 10**6 < sum(parts) <= smallest
    with pytest.raises(BoundError):
        rf.stream(place, DATA, "params=0.9", tmp_path / "less", memory=smallest - 10**6, settings=LITTLE)
    found = rf.stream(place, DATA, "params=0.9", tmp_path / "small", memory=told.rsplit(" ", 1)[1], settings=LITTLE)
    assert found.needs["bound"] == smallest


def test_a_job_that_was_killed_keeps_its_finished_blocks_within_another_bound(place, little, tmp_path):
    out = tmp_path / "small"
    child = os.fork()
    if not child:  # pragma: no cover
        put = hub.Shards.put

        def killed(self, number, *rest):
            put(self, number, *rest)
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        hub.Shards.put = killed
        rf.stream(place, DATA, "params=0.9", out, memory=MEMORY, settings=LITTLE)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    note = out / "run" / "shards" / "block-0000.json"  # all else that the folder must say is in the shard itself
    note.write_text(json.dumps({key: json.loads(note.read_text())[key] for key in ("sha256", "entries")}))
    fitted, put, known = [], hub.Shards.put, little[0].needs
    less = LIBRARIES + 2 * known["block"] + 24 * known["sample"] + known["matrix"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub.Shards, "put", lambda self, number, *rest: (fitted.append(number), put(self, number, *rest)))
        found = rf.stream(place, DATA, "params=0.9", out, memory=less, settings=LITTLE)
    assert found.needs["bound"] < little[0].needs["bound"]
    assert found.needs["batch"] == little[0].needs["batch"] == 4  # of other batches ranks may be others
    assert fitted[0] == 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held = [load_file(shard) for shard in out.glob("model-*.safetensors")]
    assert index["weight_map"].keys() == {name for tensors in held for name in tensors}
    assert index["metadata"]["total_size"] == sum(x.nbytes for tensors in held for x in tensors.values())
    assert [(e.form, e.rank) for e in found.plan.entries] == [(e.form, e.rank) for e in little[0].plan.entries]
    assert found.after["kl"] == pytest.approx(little[0].after["kl"], rel=0.05)
    assert {path.name for path in (out / "run").rglob("*")} == {"request.json"}


def test_what_was_measured_before_is_read_back_a_part_at_a_time(place, tmp_path, monkeypatch):
    """A job that goes on holds no more than one that was not interrupted: of one part at a time the metrics."""

    def stopped(*asked: object, **named: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Profile, "plan", stopped)
        with pytest.raises(KeyboardInterrupt):
            rf.stream(place, DATA, "params=0.9", tmp_path / "small", memory=MEMORY, settings=LITTLE)
    read, alive, most = in_blocks.read_part, [], []

    def watched(*asked):
        most.append(len({part for part, metric in alive if metric() is not None}))
        known = read(*asked)
        alive.extend((len(most), weakref.ref(metric)) for metric in known.metrics.values())
        return known

    monkeypatch.setattr(in_blocks, "read_part", watched)
    rf.stream(place, DATA, "params=0.9", tmp_path / "small", memory=MEMORY, settings=LITTLE)
    assert len(most) > 2
    assert alive
    assert max(most) <= 1


def test_a_disk_without_room_is_told_before_any_work(place, tmp_path, monkeypatch):
    plain = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plain)
    with pytest.raises(OSError, match="bytes will be needed there, and 1,000 are free"):
        rf.stream(place, DATA, "params=0.8", tmp_path / "other", memory=MEMORY)
    assert not (tmp_path / "other").exists()


def test_the_smallest_bound_works_and_what_does_not_fit_is_fitted_from_its_smaller_side(place, little, tmp_path):
    known = little[0].needs
    least = LIBRARIES + 2 * known["block"] + 3 * known["sample"] + known["matrix"]
    found = rf.stream(place, DATA, "params=0.9", tmp_path, memory=least, settings=LITTLE)
    beyond = [entry for entry in found.plan.changed if "its moments take more than the bound of memory" in entry.note]
    assert {entry.site.rpartition(".")[2] for entry in beyond} == {"o_proj", "up_proj"}
    assert not any("without data" in entry.note for entry in found.plan.entries)
    assert 0 < found.after["kl"] < 2 * little[0].after["kl"]


def spoiled(place: Path, out: Path, change) -> Path:
    shutil.copytree(place, out)
    change(out, sorted(out.glob("model-*.safetensors")))
    return out


def retyped(folder, shards):
    tensors = load_file(shards[0])
    name = next(name for name in tensors if "proj" in name)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, shards[0])


def lessened(folder, shards):
    tensors = load_file(shards[0])
    del tensors[next(name for name in tensors if "proj" in name)]
    save_file(tensors, shards[0])


SPOILED = {
    "cut short": (lambda folder, shards: shards[1].write_bytes(shards[1].read_bytes()[:-8]), "damaged or cut short"),
    "missing": (lambda folder, shards: shards[1].unlink(), "a part of the model is missing"),
    "key": (lessened, "its files hold no"),
    "type": (retyped, "is stored as I8, as quantisers do"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_what_is_wrong_with_a_folder_is_told_in_one_line(place, tmp_path, fault):
    change, told = SPOILED[fault]
    with pytest.raises(hub.HubError, match=told) as error:
        rf.stream(spoiled(place, tmp_path / "bad", change), DATA, "params=0.8", tmp_path / "out")
    assert "\n" not in str(error.value)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def pictures() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """No embedding of tokens, and no tokens."""
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4)
    return transformers.ViTForImageClassification(config), [{"pixel_values": torch.randn(4, 3, 16, 16)} for _ in "1234"]


def texts() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """One that asks its factored layers for their dtype."""
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config), drawn(16, 0)


@pytest.mark.parametrize("make", [pictures, texts])
def test_models_of_other_kinds_go_through_block_by_block(make, tmp_path):
    torch.manual_seed(0)
    model, data = make()
    model.save_pretrained(tmp_path / "dense")
    found = rf.stream(tmp_path / "dense", (data, data[:1], data[:1]), "params=0.8", tmp_path / "small", memory="400MB")
    assert found.plan.after.params <= 0.8 * found.plan.before.params
    small = hub.opened(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == found.plan.after.params
    small(**data[0])


def test_sounds_are_refused_before_any_work_where_blocks_cannot_be_told_apart(tmp_path):
    config = transformers.Wav2Vec2Config(
        **SMALL, vocab_size=32, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "dense")
    data = [{"input_values": torch.randn(2, 400)} for _ in range(2)]
    with pytest.raises(PagesError, match="compress it as a whole, without a bound") as error:
        rf.stream(tmp_path / "dense", (data, data, data), "params=0.8", tmp_path / "small")
    assert "\n" not in str(error.value)


def test_a_configuration_of_somebody_else_is_not_replaced(place, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "request.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(rf.StoreError, match=r"config\.json is there already, and rankfold did not write it"):
        rf.stream(place, DATA, "params=0.8", tmp_path, memory=MEMORY)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_what_needs_the_whole_is_refused(place, streamed, tmp_path):
    for settings in (Settings("sequential", tune=3), Settings("sequential", finetune=1), Settings("project")):
        with pytest.raises(ValueError, match="leave the bound out"):
            rf.stream(place, DATA, "params=0.8", tmp_path, settings=settings)
    with pytest.raises(hub.HubError, match="already compressed by rankfold"):
        rf.stream(streamed[0].directory, DATA, "params=0.8", tmp_path)


def test_the_command_line(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("tokens.npy", np.random.default_rng(0).integers(0, VOCABULARY, 12 * 24))
    asked = ("--budget", "params=0.9", "--length", 12, "--memory", "260MB", "--only", "*.o_proj")
    told = succeeded("compress", place, "--data", "tokens:tokens.npy", *asked, "-o", "small")
    assert told["compressed"]["params"] <= 0.9 * told["before"]["params"]
    assert {"perplexity", "kl", "agreement", "params", "flops", "bytes"} <= told["compressed"].keys()
    again = rankfold("compress", place, "--data", "tokens:tokens.npy", *asked, "-o", "small")
    assert again.exit_code == 0
    assert "perplexity (test)" in again.stdout
    assert "nothing to do" in again.stderr
    assert "leave the bound out" in failed("compress", place, "--data", "text:x", *asked, "-o", "o", "--tune", 3)


def test_a_model_in_memory_and_an_amount_that_is_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is in memory already"):
        rf.stream(torch.nn.Linear(2, 2), (None, None, None), "params=0.9", tmp_path / "small")
    with pytest.raises(ValueError, match="is not an amount of memory: write 500MB, 2GB, 2GiB"):
        rf.stream(tmp_path, (None, None, None), "params=0.9", tmp_path / "small", memory="much")
