"""A compressed model of transformers: the folder that it is saved as, and who can load it."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import network
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.pipeline import compress
from rankfold.sites import Form

transformers = pytest.importorskip("transformers")
NAMES = ["llama", "falcon", "gpt2", "bert", "bert_without_head", "t5", "vit"]


def inputs(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def answer(model, batch):
    with torch.no_grad():
        found = model.eval()(**inputs(batch))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def compressed(name: str, form: Form = Form.FACTORED):
    """The dense model, a batch, the same with every matrix factored, and its plan."""
    model, batch = network(name)
    ranks = {site.name: max(1, min(site.shape) // 3) for site in rf.sites(model).reducible}
    plan = rf.plan(model, rf.Ranks(ranks), "truncate", example=inputs(batch))
    if form is not Form.FACTORED:
        taken = {site.name for site in rf.sites(model) if form in site.forms}
        entries = [rf.Entry(**(vars(e) | {"form": form})) if e.site in taken else e for e in plan.entries]
        plan = plan.with_entries(tuple(entries))
    return model, batch, rf.apply_(copy.deepcopy(model), plan), plan


def loaded_as_told(folder: Path):
    """The model that the lines in the folder's README give."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code.replace("this folder", str(folder)), names)
    return names["model"]


def test_a_class_that_no_auto_class_gives_is_loaded_by_its_own_name(tmp_path):
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2DoubleHeadsModel(config).eval()
    batch = {"input_ids": torch.arange(8)[None]}
    plan = rf.plan(model, "params=0.9", "truncate", example=batch)
    rf.save(rf.apply_(model, plan), plan, tmp_path / "small")
    assert type(loaded_as_told(tmp_path / "small")) is transformers.GPT2DoubleHeadsModel


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_the_same_outputs_however_it_is_loaded(name, tmp_path):
    model, batch, small, plan = compressed(name)
    rf.save(small, plan, tmp_path / "small", notes={"made by": "me"})
    wanted = answer(small, batch)
    stored = rf.load(tmp_path / "small")
    assert type(stored.model) is type(model)
    assert (stored.plan, stored.notes) == (plan, {"made by": "me"})
    assert torch.equal(answer(stored.model, batch), wanted)
    assert torch.equal(answer(type(model).from_pretrained(tmp_path / "small"), batch), wanted)
    assert torch.equal(answer(rf.load(tmp_path / "small", copy.deepcopy(model)).model, batch), wanted)
    assert len(plan.changed) >= 8
    assert type(loaded_as_told(tmp_path / "small")) is type(model)
    kinds = {type(stored.model.get_submodule(entry.site)).__name__ for entry in plan.changed}
    assert kinds <= {"LowRankLinear", "LowRankConv1D", "LowRankEmbedding", "SpatialConv2d"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_without_head"])
@pytest.mark.parametrize("form", [Form.FACTORED, Form.PIVOTED])
def test_a_network_whose_factors_were_factored_once_more_is_a_folder_too(name, form, tmp_path):
    model, batch, small, _ = compressed(name, form)
    inside = [site.name for site in rf.sites(small).reducible][:6]
    again = rf.plan(small, rf.Ranks(dict.fromkeys(inside, 1)), "truncate", example=inputs(batch))
    assert any(entry.site.endswith((".down", ".up", ".up.rest")) for entry in again.changed)
    twice = rf.apply_(small, again)
    rf.save(twice, again, tmp_path / "twice")
    wanted = answer(twice, batch)
    assert torch.equal(answer(rf.load(tmp_path / "twice").model, batch), wanted)
    assert torch.equal(answer(type(model).from_pretrained(tmp_path / "twice"), batch), wanted)


class OwnConfig(transformers.PretrainedConfig):
    model_type = "own-network"


class OwnNetwork(transformers.PreTrainedModel):
    """As anyone may write one, of which transformers knows neither name nor architecture."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.net = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))
        self.post_init()

    def forward(self, x):
        return self.net(x)


def test_a_class_that_transformers_does_not_know_is_loaded_into_a_dense_model_of_it(tmp_path):
    model, x = OwnNetwork(OwnConfig()).eval(), torch.randn(4, 16)
    plan = rf.plan(model, "params=0.6", "truncate", example=x)
    small = rf.apply_(copy.deepcopy(model), plan)
    rf.save(small, plan, tmp_path / "small")
    assert plan.changed
    assert torch.equal(rf.load(tmp_path / "small", OwnNetwork(OwnConfig())).model.eval()(x), small(x))
    with pytest.raises(rf.StoreError, match=r"own-network.*rankfold.load\(folder, model\)"):
        rf.load(tmp_path / "small")


def test_without_the_plug_in_every_folder_raises(tmp_path):
    """In a process of its own: saved, saved by transformers after it was loaded, and in shards; the dense one loads."""
    _, batch, small, plan = compressed("llama")
    rf.save(small, plan, tmp_path / "saved")
    again = rf.load(tmp_path / "saved").model
    again.save_pretrained(tmp_path / "resaved")
    again.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    small.save_pretrained(tmp_path / "by hand")
    rf.hub.to_dense(again).save_pretrained(tmp_path / "dense")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    folders = ["saved", "resaved", "sharded", "by hand"]
    for folder in folders:
        assert torch.equal(
            answer(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder), batch), answer(small, batch)
        )
    code = (
        "import sys, transformers\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        transformers.AutoModelForCausalLM.from_pretrained(folder)\n"
        "    except RuntimeError:\n"
        "        print('raised')\n"
        "    else:\n"
        "        print('loaded')\n"
        "assert not any(name.startswith('rankfold') for name in sys.modules)"
    )
    command = [sys.executable, "-c", code, *folders, "dense"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["raised"] * 4 + ["loaded"]
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert type(dense.model.layers[0].mlp.up_proj) is nn.Linear
    torch.testing.assert_close(answer(dense, batch), answer(small, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_multiplied_out_it_is_the_architecture_again(name):
    model, batch, small, _ = compressed(name)
    dense = rf.hub.to_dense(small)
    assert {k: v.shape for k, v in dense.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    torch.testing.assert_close(answer(dense, batch), answer(small, batch), rtol=1e-4, atol=1e-4)
    assert not hasattr(dense.config, "quantization_config")
    tied = [len({id(p) for p in m.parameters()}) for m in (dense, model)]
    assert tied[0] == tied[1]


def test_a_gained_bias_has_no_place_in_the_architecture():
    model, batch = network("llama")
    plan = rf.plan(model, rf.Ranks({"model.layers.0.mlp.up_proj": 4}), data=[inputs(batch)], objective="teacher")
    assert plan["model.layers.0.mlp.up_proj"].bias
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp.up_proj: its factors carry a bias"):
        rf.hub.to_dense(rf.apply_(model, plan))


@pytest.fixture
def own_form(monkeypatch):
    """A form that is registered for one test."""
    import importlib

    from rankfold.forms import form

    monkeypatch.setattr(form, "_REGISTERED", dict(form._REGISTERED))
    for name in ("mine", "mine.form"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("mine.form").PIVOTED
    for name in ("mine", "mine.form"):
        sys.modules.pop(name, None)


def test_a_form_of_ones_own_is_read_through_its_skeleton(tmp_path, own_form):
    _, batch, small, plan = compressed("bert", own_form)
    assert small.bert.pooler.dense.rest.weight.shape == (22, 10)
    rf.save(small, plan, tmp_path)
    again = rf.load(tmp_path).model
    assert again.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in small.state_dict().items())
    torch.testing.assert_close(answer(again, batch), answer(small, batch))  # memory may lie otherwise


def test_a_body_and_another_head_find_their_layers(tmp_path, caplog):
    _, batch, small, plan = compressed("bert")
    rf.save(small, plan, tmp_path / "small")
    body = transformers.AutoModel.from_pretrained(tmp_path / "small")
    wanted = small.bert(**inputs(batch)).last_hidden_state
    assert torch.equal(answer(body, batch), wanted)
    body.save_pretrained(tmp_path / "body")
    headed = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "body")
    assert torch.equal(headed.bert(**inputs(batch)).last_hidden_state, wanted)
    assert "classifier" not in str(body.config.quantization_config.sites.keys())


def test_tied_heads_stay_tied_and_dtypes_are_as_asked(tmp_path):
    _, batch, small, plan = compressed("gpt2")
    rf.save(small, plan, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.float().dtype == torch.float32  # a quantised model would refuse
    three = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert loaded.generate(batch["input_ids"][:1, :4], **three).shape == (1, 7)


def test_the_configuration_follows_the_layers(tmp_path):
    """Ranks are those at the time of saving, and a layer that was multiplied out by hand is an ordinary one again."""
    _, batch, small, _ = compressed("llama")
    layer = small.model.layers[0].mlp.up_proj
    layer.down = nn.Linear(32, 3, bias=False)
    layer.up = nn.Linear(3, 48, bias=False)
    layer.rank = 3
    small.model.layers[1].mlp.up_proj = nn.Linear(32, 48, bias=False)
    small.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert kept["sites"]["model.layers.0.mlp.up_proj"]["rank"] == 3
    assert "model.layers.1.mlp.up_proj" not in kept["sites"]
    assert load_file(tmp_path / "model.safetensors")[kept["poison"]].numel() == 0
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(answer(again, batch), answer(small, batch))


@pytest.mark.parametrize("how", ["apply", "load"])
def test_a_configuration_that_other_models_share_stays_as_it_is(how, tmp_path):
    """A teacher and a student made from one configuration: only the student's folder needs the plug-in."""
    teacher, batch = network("llama")
    student = type(teacher)(teacher.config).eval()
    student.load_state_dict(teacher.state_dict())
    if how == "apply":
        plan = rf.plan(student, rf.Ranks({"model.layers.0.mlp.up_proj": 4}), "truncate", example=inputs(batch))
        rf.apply_(student, plan)
    else:
        _, _, small, plan = compressed("llama")
        rf.save(small, plan, tmp_path / "stored")
        rf.load(tmp_path / "stored", student)
    assert not hasattr(teacher.config, "quantization_config")
    teacher.save_pretrained(tmp_path / "teacher")
    assert torch.equal(answer(type(teacher).from_pretrained(tmp_path / "teacher"), batch), answer(teacher, batch))
    held = [value for module in student.modules() for name, value in vars(module).items() if name == "config"]
    assert len(held) > 2
    assert all(value is student.config for value in held)  # settings that are changed later reach every layer
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(answer(type(teacher).from_pretrained(tmp_path / "student"), batch), answer(student, batch))


def test_two_models_in_one_that_share_a_configuration(tmp_path):
    """In one module, one of them compressed."""
    teacher, batch = network("llama")
    both = nn.ModuleDict({"teacher": teacher, "student": type(teacher)(teacher.config).eval()})
    plan = rf.plan(both["student"], rf.Ranks({"model.layers.0.mlp.up_proj": 4}), "truncate", example=inputs(batch))
    named = tuple(rf.Entry(**(vars(entry) | {"site": f"student.{entry.site}"})) for entry in plan.entries)
    from rankfold.compress.applying.apply import shape_

    shape_(both, plan.with_entries(named))
    assert hasattr(both["student"].config, "quantization_config")
    assert not hasattr(teacher.config, "quantization_config")
    assert teacher.model.config is teacher.config


def test_a_kept_model_needs_no_plug_in(tmp_path):
    model, batch = network("llama")
    plan = rf.plan(model, rf.Ranks({}), "truncate", example=inputs(batch))
    rf.save(rf.apply_(model, plan), plan, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(answer(rf.load(tmp_path).model, batch), answer(model, batch))


def test_equal_saves_are_equal_bytes_and_an_earlier_shape_of_the_folder_goes(tmp_path, monkeypatch):
    from rankfold.hub import folder

    _, batch, small, plan = compressed("llama")
    monkeypatch.setattr(folder, "SHARD", "20KB")
    rf.save(small, plan, tmp_path / "a")
    rf.save(small, plan, tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "model.safetensors" not in names
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]
    monkeypatch.undo()
    rf.save(small, plan, tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").glob("model*")] == ["model.safetensors"]
    assert torch.equal(answer(rf.load(tmp_path / "a").model, batch), answer(small, batch))


def test_what_lies_beside_the_weights_comes_along(tmp_path):
    """A tokenizer, and the stages of sentence-transformers; not the weights, code or card of the original."""
    model, batch = network("bert_without_head")
    source = tmp_path / "source"
    model.save_pretrained(source)
    extra = {"tokenizer.json": "{}", "modules.json": "[]", "1_Pooling/config.json": "{}", "modeling_x.py": "1/0",
             "README.md": "the original", "pytorch_model.bin": "x", "2_Dense/model.safetensors": "y"}  # fmt: skip
    for name, text in extra.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    model = type(model).from_pretrained(source)
    plan = rf.plan(model, rf.Ranks({"pooler.dense": 4}), "truncate", example=inputs(batch))
    rf.save(rf.apply_(model, plan), plan, tmp_path / "small")
    found = {str(path.relative_to(tmp_path / "small")) for path in (tmp_path / "small").rglob("*") if path.is_file()}
    brought = {"tokenizer.json", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    assert found == brought | {"config.json", "model.safetensors", "plan.json", "manifest.json", "README.md"}
    assert str(tmp_path) not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "small").glob("*.*"))
    rf.load(tmp_path / "small")
    (tmp_path / "small" / "1_Pooling" / "config.json").write_text("[]")
    with pytest.raises(rf.StoreError, match=r"1_Pooling/config\.json: damaged"):
        rf.load(tmp_path / "small")


def damaged(folder: Path, what: str) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    if what == "cut":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif what == "gone":
        shard.unlink()
    elif what == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    elif what == "outside":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    elif what == "pickle":
        for path in folder.glob("model*"):
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")
    elif what == "order":
        for path in folder.glob("*.safetensors"):
            state = load_file(path)
            for name in [name for name in state if name.endswith(".order")]:
                state[name][0] = -1
            save_file(state, path, {"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        site = next(iter(config["quantization_config"]["sites"]))
        changed = {
            "form": {"form": "woven"}, "rank": {"rank": 99}, "lacking": {"form": None}, "name": {},
        }[what]  # fmt: skip
        config["quantization_config"]["sites"][site] |= changed
        if what == "name":
            config["quantization_config"]["sites"]["model.layers.7.x"] = {"form": "factored", "rank": 1, "bias": False}
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut", "damaged or cut short"), ("gone", "a part of the model is missing"), ("index", "damaged"),
        ("outside", "files outside its folder"), ("pickle", "save the model as"), ("form", "no form named 'woven'"),
        ("order", "up.order must name"),
        ("rank", "stored as factored of rank 99"), ("lacking", "no form named None"), ("name", "has no such layer"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_told_in_one_line(what, said, tmp_path):
    _, _, small, _ = compressed("llama", Form.PIVOTED if what == "order" else Form.FACTORED)
    small.save_pretrained(tmp_path, max_shard_size="20KB")
    rf.hub.opened(tmp_path)
    damaged(tmp_path, what)
    with pytest.raises(rf.hub.HubError, match=said) as caught:
        rf.hub.opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_of_a_folder_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": {"AutoModel": "m.M"}}))
    (tmp_path / "m.py").write_text("raise SystemExit('run')")
    with pytest.raises(rf.hub.HubError, match=r"needs code from the model's own folder.*package.module:function"):
        rf.hub.opened(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "strange"}))
    with pytest.raises(rf.hub.HubError, match="does not know the architecture 'strange'"):
        rf.hub.opened(tmp_path)


def test_a_model_of_another_quantiser_is_refused_when_it_is_saved(tmp_path):
    from transformers.quantizers.base import HfQuantizer

    class Other(HfQuantizer):
        is_trainable = True

        def is_serializable(self):
            return True

    _, _, small, plan = compressed("llama")
    small.hf_quantizer = Other(type("C", (), {"quant_method": "gguf"})())
    with pytest.raises(rf.StoreError, match=r"loaded by the quantizer 'gguf'.*fresh = type"):
        rf.save(small, plan, tmp_path)


def test_a_model_of_another_quantiser_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    def measured(*_, **__):
        raise AssertionError("work was begun")

    original, batch, *_ = compressed("llama")
    original.hf_quantizer = type("Other", (), {"quantization_config": type("C", (), {"quant_method": "gguf"})()})()
    monkeypatch.setattr("rankfold.pipeline.compression.planned.profiled", measured)
    with pytest.raises(rf.StoreError, match=r"quantizer 'gguf'.*take quantization_config out of its config\.json"):
        compress(original, ([inputs(batch)],) * 2, "params=0.8", directory=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("theirs", ["config.json", "model.safetensors.index.json"])
def test_a_folder_of_somebody_else_is_not_replaced(theirs, tmp_path):
    _, _, small, plan = compressed("llama")
    (tmp_path / theirs).write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(rf.StoreError, match=f"{theirs} is there already, and rankfold did not write it"):
        rf.save(small, plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [theirs]
    (tmp_path / theirs).unlink()
    rf.save(small, plan, tmp_path)
    (tmp_path / "manifest.json").unlink()  # the configuration says that the folder is ours
    rf.save(small, plan, tmp_path)
    assert rf.load(tmp_path).plan == plan


def sliced(name: str, form: Form = Form.FACTORED, kept: tuple[str, ...] = ()):
    """A compressed network with its bottlenecks, in which the layers ``kept`` are dense as they were."""
    model, batch = network(name)
    found = [site for site in rf.sites(model).reducible if site.name not in kept]
    plan = rf.plan(
        model, rf.Ranks({s.name: max(1, min(s.shape) // 2) for s in found}), "truncate", example=inputs(batch)
    )
    taken = {site.name for site in found if form in site.forms}
    entries = [rf.Entry(**(vars(e) | {"form": form})) if e.site in taken else e for e in plan.entries]
    plan = plan.with_entries(tuple(entries)) if form is not Form.FACTORED else plan
    small = rf.apply_(copy.deepcopy(model), plan)
    return batch, rf.Stored(small, plan, {}, rf.bottlenecks(small, batch))


@pytest.mark.parametrize("form", [Form.FACTORED, Form.PIVOTED, Form.INT8])
def test_what_a_slice_factors_is_in_its_configuration(form, tmp_path):
    """Layers that the first plan kept, and the slice of a slice; saved by us, and by transformers."""
    kept = ("model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.v_proj")
    batch, stored = sliced("llama", form, kept)
    example = inputs(batch)
    for number, name in enumerate(kept):
        once = rf.slice_(stored, rf.Ranks({name: 5}), example=example)
        assert once.plan[name].form is Form.FACTORED
        assert stored.plan[name].form is Form.KEEP
        place = rf.save(once.model, once.plan, tmp_path / str(number), bottlenecks=once.bottlenecks)
        told = json.loads((place / "config.json").read_text())["quantization_config"]["sites"]
        assert told[name] == {"form": "factored", "rank": 5, "bias": False}
        assert set(told) == {entry.site for entry in once.plan.changed}
        once.model.save_pretrained(tmp_path / f"by hand {number}")
        wanted = answer(once.model, batch)
        for folder in (place, tmp_path / f"by hand {number}"):
            assert torch.equal(answer(transformers.AutoModelForCausalLM.from_pretrained(folder), batch), wanted)
        stored = rf.load(place)
        assert torch.equal(answer(stored.model, batch), wanted)


def test_a_slice_of_a_network_that_nothing_was_factored_in(tmp_path):
    model, batch = network("llama")
    plan = rf.plan(model, rf.Ranks({}), "truncate", example=inputs(batch))
    stored = rf.Stored(model, plan, {}, rf.bottlenecks(model, batch))
    made = rf.slice_(stored, rf.Ranks({"model.layers.0.self_attn.k_proj": 3}), example=inputs(batch))
    rf.save(made.model, made.plan, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(answer(again, batch), answer(made.model, batch))


def without_site(folder: Path, name: str) -> None:
    """As an earlier version wrote a slice: the configuration does not tell of one layer."""
    told = json.loads((folder / "config.json").read_text())
    del told["quantization_config"]["sites"][name]
    (folder / "config.json").write_text(json.dumps(told))


def test_a_layer_that_would_be_random_is_refused_by_whatever_loads(tmp_path):
    from rankfold.hub import HubError

    _, _, small, plan = compressed("bert")
    rf.save(small, plan, tmp_path)
    name = "bert.encoder.layer.1.output.dense"
    without_site(tmp_path, name)
    auto = transformers
    for kind in (auto.BertForSequenceClassification, auto.AutoModel, auto.AutoModelForTokenClassification):
        with pytest.raises(HubError, match=r"in no layer of the network .*output\.dense\.(down|up)\.weight"):
            kind.from_pretrained(tmp_path)


def test_what_was_read_need_not_be_as_the_code_expects_that_would_draw_it(tmp_path, monkeypatch):
    """``MaskFormer`` zeroes the bias of every linear layer inside of one of its modules, and factors have none."""
    model, batch, small, plan = compressed("bert")
    rf.save(small, plan, tmp_path)
    base, met = type(model).__mro__[1], []
    draw = base._init_weights

    def drawn(self, module):
        draw(self, module)
        if type(module).__name__ == "BertLayer":
            for inner in module.modules():
                if isinstance(inner, nn.Linear):
                    met.append(inner.bias)
                    torch.zero_(inner.bias) if inner.bias is None else None

    monkeypatch.setattr(base, "_init_weights", drawn)
    again = type(model).from_pretrained(tmp_path)
    assert None in met
    assert torch.equal(answer(again, batch), answer(small, batch))
    assert not any("_init_weights" in vars(part) for part in again.modules())
    with pytest.raises(TypeError, match="zero_"):  # what no file held must be drawn
        rf.hub.drawn._draw(lambda module: torch.zero_(None), nn.Linear(2, 2))


def test_names_that_differ_between_files_and_model_are_known(tmp_path):
    """Of some architectures transformers 5 calls tensors in files by the names of earlier versions."""
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, num_labels=3
    )
    model, batch = transformers.Dinov2ForImageClassification(config).eval(), {"pixel_values": torch.randn(4, 3, 8, 8)}
    plan = rf.plan(model, "params=0.7", "truncate", example=batch)
    small = rf.apply_(copy.deepcopy(model), plan)
    rf.save(small, plan, tmp_path / "small")
    found = load_file(tmp_path / "small" / "model.safetensors").keys() - small.state_dict().keys()
    assert len(found) > 1  # more than the one that keeps others from loading it
    assert torch.equal(answer(type(model).from_pretrained(tmp_path / "small"), batch), answer(small, batch))


def test_nothing_is_written_that_would_not_be_read_back(tmp_path, monkeypatch):
    from rankfold.hub import quantizer

    _, _, small, plan = compressed("llama")
    rf.save(small, plan, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    name = "model.layers.1.mlp.up_proj"
    right = quantizer._as_they_are
    monkeypatch.setattr(quantizer, "_as_they_are", lambda *a: {k: v for k, v in right(*a).items() if k != name})
    with pytest.raises(rf.StoreError, match=f"missing \\({name}.weight\\), and 2 tensors are in no layer"):
        rf.save(small, plan, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_encoder_without_a_pooler_is_loaded_without_one(tmp_path):
    """As ``BertForMaskedLM(…).bert.save_pretrained`` writes it: transformers would draw a pooler at random."""
    from rankfold import hub

    model, batch = network("bert_without_head")
    model.pooler = None
    model.save_pretrained(tmp_path / "dense")
    again = hub.opened(tmp_path / "dense")
    assert again.pooler is None
    assert torch.equal(answer(again, batch), answer(model, batch))
    plan = rf.plan(again, "params=0.8", "truncate", example=inputs(batch))
    rf.save(rf.apply_(again, plan), plan, tmp_path / "small")
    for small in (rf.load(tmp_path / "small").model, transformers.AutoModel.from_pretrained(tmp_path / "small")):
        assert small.pooler is None
        assert torch.equal(answer(small, batch), answer(again, batch))


def test_tables_of_sines_that_transformers_never_saves_are_computed_anew(tmp_path):
    config = transformers.MarianConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=16, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MarianMTModel(config).eval()
    given = {"input_ids": torch.arange(3, 11)[None], "decoder_input_ids": torch.arange(3, 9)[None]}
    plan = rf.plan(model, "params=0.9", "truncate", example=given)
    small = rf.apply_(model, plan)
    rf.save(small, plan, tmp_path)
    with torch.no_grad():
        again = rf.load(tmp_path, transformers.MarianMTModel(config)).model.eval()
        assert torch.equal(again(**given).logits, small(**given).logits)
        fresh = transformers.MarianMTModel.from_pretrained(tmp_path)
        assert torch.equal(fresh(**given).logits, small(**given).logits)
