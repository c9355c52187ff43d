"""Weights from a file: what fits is loaded, all else is refused in one line, nothing half done."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import nn

from rankfold import untie_, zoo

DATA = os.environ.get("RANKFOLD_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="RANKFOLD_DATA is not set")


def network(seed: int = 0) -> nn.Module:
    return zoo.model("digits-cnn", generator=torch.Generator().manual_seed(seed))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def refused(model: nn.Module, file: Path, match: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(zoo.ZooError, match=match) as caught:
        zoo.load_weights(model, file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_round_trip_through_both_formats(tmp_path):
    source = network(1)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    for file in tmp_path.iterdir():
        model = network(2)
        assert not equal(model, source)
        zoo.load_weights(model, file)
        assert equal(model, source)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapper, prefix):
    source = network(1)
    state = OrderedDict((prefix + name, value) for name, value in source.state_dict().items())
    file = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, "best": 0.9, wrapper: state}, file)
    model = network(2)
    zoo.load_weights(model, str(file))
    assert equal(model, source)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by torch.compile on import
def test_wrapped_and_compiled_models_take_plain_files(tmp_path):
    source = network(1)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    wrapped = nn.DataParallel(network(2))
    zoo.load_weights(wrapped, tmp_path / "weights.safetensors")
    assert equal(wrapped.module, source)
    partly_compiled = network(3)
    partly_compiled.features = torch.compile(partly_compiled.features)
    zoo.load_weights(partly_compiled, tmp_path / "weights.safetensors")
    assert equal(partly_compiled, source)


def test_a_layer_that_is_itself_called_module(tmp_path):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    source, model = Odd(), Odd()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    zoo.load_weights(model, tmp_path / "w.safetensors")
    assert equal(model, source)


def test_values_take_the_dtype_of_the_model(tmp_path):
    source = network(1)
    save_file(source.half().state_dict(), tmp_path / "half.safetensors")
    model = network(2).double()
    zoo.load_weights(model, tmp_path / "half.safetensors")
    weight = next(model.parameters())
    assert weight.dtype == torch.float64
    assert torch.equal(weight, next(source.parameters()).double())


def test_batch_norm_counters_may_be_missing(tmp_path):
    source = network(1)
    state = {name: v for name, v in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    model = network(2)
    zoo.load_weights(model, tmp_path / "old.safetensors")
    assert equal(model, source)


def test_a_file_that_does_not_fit_names_its_first_faults(tmp_path):
    state = network(1).state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["classifier.3.bias"]
    state["classifier.3.weight"] = torch.zeros(3, 64)
    save_file(state, tmp_path / "w.safetensors")
    refused(
        network(),
        tmp_path / "w.safetensors",
        r"1 missing: classifier\.3\.bias; 1 unexpected: extra\.weight; "
        r"1 of another shape: classifier\.3\.weight is 3×64 in the file and 10×64 in the model",
    )


def test_a_list_of_faults_is_cut(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    refused(network(), tmp_path / "w.safetensors", r"24 missing: [\w.]+, [\w.]+, [\w.]+, …; 1 unexpected: a$")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_file_with_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "code-has-run"
    torch.save({"state_dict": Payload(marker)}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(marker)))
    for name in ("evil.pt", "evil.pkl"):
        refused(network(), tmp_path / name, "refused, .* could run code")
    assert not marker.exists()
    pickle.loads((tmp_path / "evil.pkl").read_bytes())
    assert marker.exists(), "the payload would have worked"


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    refused(nn.Linear(2, 2), tmp_path / "model.pt", r"save model\.state_dict\(\) alone")


def test_contents_that_are_no_state_dict(tmp_path):
    contents = {
        "holds a list": [torch.zeros(2)],
        "holds a Tensor": torch.zeros(2),
        "1 of its 2 entries are not named tensors, the first of them 'lr'": {"weight": torch.zeros(2), "lr": 0.1},
        "the first of them 0": {0: torch.zeros(2)},
        "2 missing": {},
    }
    for match, content in contents.items():
        torch.save(content, tmp_path / "w.pt")
        refused(nn.Linear(2, 2), tmp_path / "w.pt", match)


def test_files_that_are_not_there_or_empty_or_foreign(tmp_path):
    refused(network(), tmp_path / "absent.pt", "no file")
    refused(network(), tmp_path, "is not a file")
    foreign = {
        "empty.pt": b"",
        "empty.safetensors": b"",
        "text.pt": b"these are not weights\n" * 20,
        "text.safetensors": b"these are not weights\n" * 20,
        "image.pt": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "zip.pt": b"PK\x03\x04" + bytes(200),
        "long.safetensors": (2**60).to_bytes(8, "little") + b"{}",
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        refused(network(), tmp_path / name, "damaged")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_called_truncated(tmp_path, kept):
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(zoo.ZooError, match=r"half\.pt is damaged or cut short: ") as caught:
        zoo.load_weights(network(), tmp_path / "half.pt")
    assert "code" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "legacy"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_truncated_and_bit_flipped_files_never_crash(tmp_path, suffix, draw):
    """Whatever the damage: weights that fit are copied, or a one-line refusal, and no other exception."""
    whole = tmp_path / f"whole.{suffix}"
    state = nn.Linear(3, 2).state_dict()
    if not whole.exists():
        if suffix == "safetensors":
            save_file(state, whole)
        else:
            torch.save(state, whole, _use_new_zipfile_serialization=suffix == "pt")
    content = bytearray(whole.read_bytes())
    if draw.draw(st.booleans(), label="truncate"):
        del content[draw.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(draw.draw(st.integers(1, 4))):
            content[draw.draw(st.integers(0, len(content) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    damaged = tmp_path / f"damaged.{suffix}"
    damaged.write_bytes(content)
    refusal = ""
    try:
        zoo.load_weights(nn.Linear(3, 2), damaged)
    except zoo.ZooError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_model_on_meta_is_refused(tmp_path):
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(zoo.ZooError, match="on the meta device, without values"):
        zoo.load_weights(network().to("meta"), tmp_path / "w.safetensors")


def test_lazy_layers_take_their_shape_from_the_file(tmp_path):
    source = nn.Linear(3, 2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = nn.LazyLinear(2)
    zoo.load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.weight, source.weight)


@needs_data
def test_published_resnet20_weights_classify_cifar10():
    """91.73 % on the 10,000 test images; here on the first 2,000."""
    model = zoo.model("resnet20")
    zoo.load_weights(model, Path(DATA or "") / "cifar10-resnets" / "resnet20-12fca82f.th")
    model.eval()
    test = zoo.load_data("cifar10").test.subset(torch.arange(2_000))
    with torch.inference_mode():
        correct = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in test.batches(500))
    assert correct / 2_000 > 0.90


@needs_data
def test_published_weights_do_not_fit_another_depth():
    file = Path(DATA or "") / "cifar10-resnets" / "resnet20-12fca82f.th"
    refused(zoo.model("resnet32"), file, r"missing: layer1\.3\.conv1\.weight")


def test_a_file_with_one_name_of_tied_weights_fits(tmp_path):
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    source, model = tied(), tied()
    save_model(source, str(tmp_path / "tied.safetensors"))
    zoo.load_weights(model, tmp_path / "tied.safetensors")
    assert torch.equal(model[2].weight, source[0].weight)
    assert model[2].weight is model[0].weight
    untied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(zoo.ZooError, match="1 missing"):
        zoo.load_weights(untied, tmp_path / "tied.safetensors")


class Tied(nn.Module):
    """An embedding and the head, which may be the same table."""

    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        if tie:
            self.outer.weight = self.inner.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(tokens))


def test_a_file_in_which_tied_weights_differ_is_refused(tmp_path):
    """The last name decided for both, and the network computed something else."""
    source, tokens = Tied(False), torch.arange(10)
    torch.save(source.state_dict(), tmp_path / "apart.pt")
    refused(
        Tied(True), tmp_path / "apart.pt", "inner.weight and outer.weight are one in the model and differ in .*unti"
    )
    model = untie_(Tied(True))
    zoo.load_weights(model, tmp_path / "apart.pt")
    assert torch.equal(model(tokens), source(tokens))
    tied = Tied(True)
    with torch.no_grad():
        tied.inner.weight[0, 0] = float("nan")  # of which none is equal to itself
    torch.save({**tied.state_dict(), "outer.weight": tied.outer.weight.double()}, tmp_path / "tied.pt")
    model = Tied(True)
    zoo.load_weights(model, tmp_path / "tied.pt")
    assert torch.equal(model.outer.weight[1:], tied.inner.weight[1:])


class Counting(nn.Linear):
    """With extra state, which is no tensor or one."""

    kept: object = {"seen": 1}

    def get_extra_state(self) -> object:
        return self.kept

    def set_extra_state(self, state: object) -> None:
        self.kept = state


def test_extra_state_need_not_be_in_the_file_and_is_taken_where_it_is(tmp_path):
    source, model = nn.Sequential(Counting(3, 2)), nn.Sequential(Counting(3, 2))
    save_file(nn.Sequential(nn.Linear(3, 2)).state_dict(), tmp_path / "plain.safetensors")
    zoo.load_weights(model, tmp_path / "plain.safetensors")
    assert model[0].kept == {"seen": 1}
    source[0].kept = torch.tensor([7])
    torch.save(source.state_dict(), tmp_path / "whole.pt")
    zoo.load_weights(model, tmp_path / "whole.pt")
    assert torch.equal(model[0].weight, source[0].weight)
    assert model[0].kept.tolist() == [7]
    save_file({"0.weight": source[0].weight.detach()}, tmp_path / "half.safetensors")
    refused(nn.Sequential(nn.Linear(3, 2)), tmp_path / "half.safetensors", "1 missing: 0.bias")
    refused(nn.Sequential(nn.Linear(3, 2)), tmp_path / "whole.pt", "1 unexpected: 0._extra_state")
