"""The faults that every path survives, each shown from end to end through the public functions."""

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import scipy.linalg
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import rankfold as rf
from rankfold import costs, zoo
from rankfold.layers import LowRankConv, LowRankLinear
from rankfold.train import TrainingError

METHODS = ("project", "truncate")
X = torch.randn(64, 12, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(64) % 4
PAIR = ((X, LABELS), (X, LABELS))
ONE_EPOCH = rf.Recipe(epochs=1, batch_size=16, distill=rf.Distill())


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        return nn.Sequential(*layers).to(dtype).eval()


def convolutional() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()


def compress(model: nn.Module, method: str = "project", data=None, budget="params=0.7", **kwargs):
    """(compressed copy, plan)."""
    plan = rf.plan(model, budget, method, [X] if data is None else data, **kwargs)
    return rf.apply_(copy.deepcopy(model), plan), plan


def finite(model: nn.Module) -> bool:
    return all(bool(p.double().isfinite().all()) for p in model.parameters())


def told(kind: type[Exception], act, *parts: str) -> None:
    """``act`` raises ``kind`` in one line that says each of ``parts``."""
    with pytest.raises(kind) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", ["weight", "bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", METHODS)
def test_nan_or_inf_weights(method, bad, parameter):
    model = network()
    with torch.no_grad():
        getattr(model[2], parameter).view(-1)[3] = bad
    remedy = "leave the layer out with where="
    told(
        ValueError,
        lambda: compress(model, method),
        "2 (Linear 16×16): 1 of ",
        "NaN or infinite: repair or reload its",
        remedy,
    )
    mend = "2." + parameter + " is NaN or infinite: repair or reload the weights before training"
    told(TrainingError, lambda: rf.finetune(model, PAIR, teacher=network(), recipe=ONE_EPOCH), mend)
    small, _ = compress(model, "truncate", where=lambda name, _: name != "2", budget="params=0.9", rule="local")
    assert isinstance(small[0], LowRankLinear)
    assert small[2].weight.equal(model[2].weight) or parameter == "weight"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["project", "truncate", "tucker", "cp"])
def test_nan_or_inf_weights_of_convolutions(method, bad):
    model = convolutional()
    with torch.no_grad():
        model[1].weight[1, 1, 0, 0] = bad
    data = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    told(ValueError, lambda: compress(model, method, data), "1 (Conv2d 8×72): 1 of 576", "repair or reload its weights")


def test_nan_inputs_and_overflow_name_the_layer():
    told(
        ValueError,
        lambda: compress(network(), data=[X / 0]),
        "0 (Linear 16×12): on the calibration data its activations",
        "look for bad samples",
    )
    half = network(torch.float16)
    with torch.no_grad():
        half[0].bias.fill_(6e4)
        half[2].weight.fill_(1)
    told(
        ValueError,
        lambda: compress(half),
        "2 (Linear 16×16)",
        "float16",
        "overflow (then convert the",
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights(tmp_path, method, dtype):
    small, plan = compress(network(dtype), method)
    assert plan.changed
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert finite(small)
    rf.save(small, plan, tmp_path)
    assert torch.equal(rf.load(tmp_path, network()).model(X.to(dtype)), small(X.to(dtype)))


@pytest.mark.parametrize("method", METHODS)
def test_float8_weights(method):
    """Stored in float8, widened by hooks while the layer runs: the factors are stored and run in the same way."""
    model = network()
    layer = model[2].requires_grad_(False).to(torch.float8_e4m3fn)
    layer.register_forward_pre_hook(lambda module, args: module.to(torch.float32) and None)
    layer.register_forward_hook(lambda module, args, out: module.to(torch.float8_e4m3fn) and None)
    rf.apply_(model, rf.plan(model, rf.Ranks({"2": 12}), method, [X]))
    assert {p.dtype for p in model[2].parameters()} == {torch.float8_e4m3fn}
    assert finite(model)
    error = (model(X) - network()(X)).norm() / network()(X).norm()
    assert error < 0.5, "the factors are rounded to three bits, and no more"
    told(ValueError, lambda: rf.spectrum(torch.full((2, 2), float("nan")).to(torch.float8_e5m2)), "NaN or infinite")


@pytest.mark.parametrize("fill", ["few samples", "one sample", "duplicated", "zeros", "constant"])
def test_rank_deficient_statistics(fill):
    inputs = {
        "few samples": X[:3],
        "one sample": X[:1],
        "duplicated": torch.cat([X[:5], X[:5], X[:5, :]])[:, [0] * 6 + [1] * 6],
        "zeros": 0 * X,
        "constant": torch.ones_like(X),
    }[fill]
    model = network()
    small, plan = compress(model, data=[inputs], budget="params=0.75")
    assert plan.changed
    assert finite(small)
    assert all(0 <= entry.predicted_error <= 1 for entry in plan.entries)
    # few directions are seen, and what was seen is kept
    torch.testing.assert_close(small(inputs), model(inputs), atol=2e-2, rtol=0)


@pytest.mark.parametrize("also", [(), ("scipy",)])
@pytest.mark.parametrize("method", METHODS)
def test_svd_does_not_converge(monkeypatch, method, also):
    expected, _ = compress(network(), method)

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")

    def scipy_fails(*args, **kwargs):
        raise scipy.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    monkeypatch.setattr(torch.linalg, "svdvals", fails)
    if also:
        monkeypatch.setattr(scipy.linalg, "svd", scipy_fails)
    else:
        monkeypatch.setattr(torch.linalg, "eigh", fails)
    small, plan = compress(network(), method)
    assert plan.changed
    torch.testing.assert_close(small(X), expected(X), atol=1e-3, rtol=0)


def test_a_layer_that_no_driver_decomposes_is_kept_and_says_so(monkeypatch):
    for module, names in ((torch.linalg, ("svd", "svdvals", "eigh")), (scipy.linalg, ("svd", "eigh"))):
        for name in names:
            original = getattr(module, name)

            def maybe(a, *args, error=module.LinAlgError, real=original, **kwargs):
                if tuple(a.shape[-2:]) in ((16, 12), (12, 12)):  # the first layer and its Gram matrix
                    raise error("failed to converge")
                return real(a, *args, **kwargs)

            monkeypatch.setattr(module, name, maybe)
    small, made = compress(network(), "truncate")
    assert made["0"].form is rf.Form.KEEP
    assert "did not converge" in made["0"].note
    assert [entry.site for entry in made.changed] == ["2"]
    assert finite(small)
    with pytest.raises(ValueError, match=r"0 .*rank 3 was asked for; possible ranks.* are none"):
        compress(network(), "truncate", budget=rf.Ranks({"0": 3}))


@pytest.mark.parametrize("method", METHODS)
def test_meta_parameters(tmp_path, method):
    ghost = network().to("meta")
    assert [site.name for site in rf.sites(ghost)] == ["0", "2", "4"]
    told(
        ValueError,
        lambda: compress(ghost, method),
        "0 (Linear 16×12)",
        "on the meta device, without values",
        "load its weights first",
    )
    small, plan = compress(network(), method)
    told(ValueError, lambda: rf.apply_(ghost, plan), "load the weights")
    told(
        rf.StoreError,
        lambda: rf.save(small.to("meta"), plan, tmp_path),
        "on the meta device, without values",
        "load the weights first",
    )
    advice = ("0.weight is on the meta device, without values", "load its weights first")
    told(TrainingError, lambda: rf.finetune(ghost, PAIR, teacher=network(), recipe=ONE_EPOCH), *advice)
    told(TrainingError, lambda: rf.evaluate(ghost, PAIR[0]), *advice)


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_zero_size_layer(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(12, 0), nn.Linear(0, 12), nn.Linear(12, 12), nn.Linear(12, 4)).eval()
    small, plan = compress(model, method)
    assert dict(plan.left_out)["0.weight"] == dict(plan.left_out)["1.weight"] == "zero-size weight"
    assert {entry.site for entry in plan.entries} == {"2", "3"}
    assert small(X).shape == (64, 4)


def test_lazy_linear():
    model = nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 16), nn.Linear(16, 4)).eval()
    assert "run the model once" in dict(rf.sites(model).left_out)["0.weight"]
    told(ValueError, lambda: compress(model), "0.weight has no shape yet", "run the model once")
    model(X)
    assert [entry.site for entry in compress(model)[1].entries] == ["0", "1", "2"]


def test_shared_module(tmp_path):
    shared = nn.Linear(16, 16)
    model = nn.Sequential(nn.Linear(12, 16), shared, nn.ReLU(), shared).eval()
    small, plan = compress(model, budget=rf.Ranks({"1": 3}))
    assert small[1] is small[3]
    assert isinstance(small[1], LowRankLinear)
    assert plan.after.params == sum(p.numel() for p in small.parameters()) < plan.before.params
    rf.save(small, plan, tmp_path)
    found = rf.load(tmp_path, copy.deepcopy(model)).model
    assert found[1] is found[3]
    assert torch.equal(found(X), small(X))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.body = nn.Linear(12, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


@pytest.mark.parametrize("method", METHODS)
def test_tied_head(tmp_path, method):
    tokens = torch.arange(40).reshape(4, 10) % 20
    small, plan = compress(Tied().eval(), method, [tokens], budget="params=0.9")
    assert small.head.weight is small.embed.weight
    assert [entry.site for entry in plan.changed] == ["body"]
    assert "tied to embed.weight: factoring one would store both" in plan["head"].note
    assert plan.after.params == sum(p.numel() for p in small.parameters()) < plan.before.params
    rf.save(small, plan, tmp_path)
    found = rf.load(tmp_path, Tied()).model
    assert found.head.weight is found.embed.weight


@pytest.mark.parametrize("method", METHODS)
def test_tied_biases(method):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.c.bias = self.b.bias

        def forward(self, x):
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    x = torch.randn(64, 12)
    small, plan = compress(Shared().eval(), method, [x], budget="params=0.9")
    assert [entry.site for entry in plan.changed] == ["a"]
    assert "its bias is tied to c.bias: factoring one would store both (rankfold.untie_" in plan["b"].note
    assert plan.after.params == sum(p.numel() for p in small.parameters())
    small, plan = compress(rf.untie_(Shared()).eval(), method, [x], budget="params=0.6")
    assert plan.after.params == sum(p.numel() for p in small.parameters())
    assert len(plan.changed) > 1


def test_rank_where_factoring_gains_nothing():
    small, plan = compress(network(), "truncate", budget=rf.KeepEnergy(1.0))
    assert plan.changed == ()
    assert plan.after == plan.before
    for entry in plan.entries:
        assert "nothing is gained by factoring: no rank that is allowed costs less" in entry.note
    assert type(small[2]) is nn.Linear
    asked = rf.plan(network(), rf.Ranks({"2": 16}), "truncate", [X])
    assert asked["2"].note == "this rank was asked for, and it costs no less than the layer itself"
    assert asked["0"].note == ""
    assert rf.plan(network(), "params=1.0", "truncate", [X]).changed == ()


@pytest.mark.parametrize("fold", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_layer(fold):
    model = network()
    fold(model[2])
    small, plan = compress(model, budget="params=0.85")
    left_out = dict(plan.left_out)
    assert "remove_parametrizations" in left_out["2.bias"]
    assert not any("quantized" in reason for reason in left_out.values())
    assert parametrize.is_parametrized(small[2])
    parametrize.remove_parametrizations(model[2], "weight")
    assert "2" in {entry.site for entry in compress(model)[1].entries}


def test_weight_norm_of_the_old_kind():
    model = network()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model[2])
    assert "remove it first" in dict(rf.plan(model, "params=0.9", "truncate", [X]).left_out)["2.weight_g"]


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantized_layer():
    engines = [e for e in torch.backends.quantized.supported_engines if e != "none"]
    if not engines:
        pytest.skip("this torch has no quantized engine")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engines[-1]
    try:
        setting = {"4": torch.ao.quantization.default_dynamic_qconfig}
        model = torch.ao.quantization.quantize_dynamic(network(), setting)
        small, plan = compress(model, "truncate", budget="params=0.9")
        assert dict(plan.left_out)["4"] == "quantized: compress first, quantize afterwards"
        assert plan.changed
        assert small(X).shape == (64, 4)
    finally:
        torch.backends.quantized.engine = before


def test_hooks_on_a_replaced_layer():
    model = network()
    seen = []
    handle = model[2].register_forward_hook(lambda module, args, out: seen.append(type(module)))
    rf.apply_(model, rf.plan(model, rf.Ranks({"2": 3}), "truncate", [X]))
    seen.clear()
    assert type(model[2]) is not nn.Linear
    model(X)
    assert seen == [type(model[2])]
    handle.remove()
    model(X)
    assert seen == [type(model[2])]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))],
    ids=["parallel", "compiled", "both"],
)
def test_wrapped_model(tmp_path, wrap):
    plain, wrapped = network(), wrap(network())
    expected, plan = compress(plain)
    assert rf.plan(wrapped, "params=0.7", "project", [X]) == plan
    assert rf.apply_(wrapped, plan) is wrapped
    rf.save(wrapped, plan, tmp_path)
    assert torch.equal(rf.load(tmp_path, network()).model(X), expected(X))
    if isinstance(wrapped, nn.DataParallel):
        assert torch.equal(rf.load(tmp_path, nn.DataParallel(network())).model(X), expected(X))
        assert rf.finetune(wrapped, PAIR, teacher=plain, recipe=ONE_EPOCH).epochs


# ---- data ------------------------------------------------------------------------------------------------------------


class Forms(nn.Module):
    """Takes its inputs by position or name, calls layers by keyword, and has a layer that is not used."""

    def __init__(self, gives: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gives = gives
        self.first, self.second, self.unused = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, a, b=None, *, scale=1.0):
        hidden = torch.relu(self.first(input=a) + self.second(a if b is None else b)) * scale
        logits = self.head(hidden)
        return {"tensor": logits, "tuple": (logits, hidden), "dict": {"logits": logits, "hidden": [hidden]}}[self.gives]


BATCHES = {
    "tensor": X,
    "tuple": ((X, X), LABELS),
    "dict": {"a": X, "b": X, "labels": LABELS},
    "keywords": ({"a": X, "scale": torch.tensor(2.0)}, LABELS),
}


@pytest.mark.parametrize("rule", ["optimal", "local", "global", rf.Iterative(step=40, samples=8)], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gives", ["tensor", "tuple", "dict"])
@pytest.mark.parametrize("batch", BATCHES)
def test_tuple_dict_and_keyword_inputs_and_outputs(batch, gives, method, rule):
    model = Forms(gives).eval()
    small, plan = compress(model, method, [BATCHES[batch]], rule=rule, budget="params=0.6")
    assert plan.changed
    assert plan.after.params <= 0.6 * plan.before.params
    assert finite(small)
    assert small(a=X).__class__ is model(a=X).__class__


def test_transposed_convolution_called_with_the_size_of_its_output():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(6, 8, 3, stride=2)

        def forward(self, x):
            return self.up(x, output_size=[10, 10])

    images = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    small, _ = compress(Decoder().eval(), "truncate", [images], budget=rf.Ranks({"up": 3}))
    assert isinstance(small.up, LowRankConv)
    assert small(images).shape == (3, 8, 10, 10)


def test_layer_unused_in_calibration():
    model = Forms().eval()
    small, plan = compress(model, "project", budget=rf.Ranks({"first": 3, "unused": 4}))
    assert "never called on the calibration data: unused" in plan.notes
    assert plan["unused"].note == "never called on the calibration data: truncated without data"
    assert plan["first"].note == ""
    u, s, vh = torch.linalg.svd(model.unused.weight.detach())
    torch.testing.assert_close(small.unused.weight, (u[:, :4] * s[:4]) @ vh[:4])
    assert torch.equal(small.unused.bias, model.unused.bias)


@pytest.mark.parametrize("method", [*METHODS, "sequential"])
def test_no_layer_is_called_at_all(method):
    """A forward that is a generator runs when somebody goes through it."""

    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(12, 16)

        def forward(self, x):
            yield self.a(x)

    model, x = Later().eval(), torch.randn(8, 12)
    small, plan = compress(model, method, [x] * 4, budget="params=0.6")
    assert any("never called" in note for note in (*plan.notes, plan["a"].note))
    assert next(small(x)).shape == (8, 16)
    assert plan.after.params == sum(p.numel() for p in small.parameters()) < plan.before.params


@pytest.mark.parametrize(
    "data",
    [[], torch.zeros(0, 12), [torch.zeros(0, 12)], torch.utils.data.DataLoader([])],
    ids=["list", "tensor", "batch", "loader"],
)
@pytest.mark.parametrize("method", METHODS)
def test_empty_calibration_set(method, data):
    told(ValueError, lambda: rf.plan(network(), "params=0.7", method, data), "empty", "give at least one batch")
    told(ValueError, lambda: rf.plan(network(), "params=0.7"), "'project' needs data", "give data=")


def test_empty_training_and_evaluation_sets():
    nothing = (X[:0], LABELS[:0])
    for pair, role in (((nothing, PAIR[1]), "train"), ((PAIR[0], nothing), "validation")):
        tuned = lambda pair=pair: rf.finetune(network(), pair, teacher=network(), recipe=ONE_EPOCH)  # noqa: E731
        told(TrainingError, tuned, f"{role} data: it is empty", "give at least one sample")
    told(TrainingError, lambda: rf.evaluate(network(), nothing), "it is empty", "give at least one")


@pytest.mark.parametrize("bad", [4, 99, -1])
@pytest.mark.parametrize("form", ["tensors", "batches"])
def test_labels_out_of_range(form, bad):
    labels = LABELS.clone()
    labels[-1] = bad
    data = (X, labels) if form == "tensors" else [(X, labels)]
    model = network()
    before = copy.deepcopy(model.state_dict())
    for pair in ((data, PAIR[1]), (PAIR[0], data)):
        act = lambda pair=pair: rf.finetune(model, pair, teacher=network(), recipe=ONE_EPOCH)  # noqa: E731
        told(TrainingError, act, f"data: label {bad} is ")
    told(TrainingError, lambda: rf.evaluate(model, data), f"label {bad} is ")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "flipped", "lying", "missing"])
def test_damaged_file(tmp_path, damage):
    small, plan = compress(network())
    rf.save(small, plan, tmp_path)
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "lying":
        manifest = tmp_path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 1, "model": "other"'))
    else:
        data[-1] ^= 1
        file.write_bytes(data[:-8] if damage == "truncated" else data)
    told(rf.StoreError, lambda: rf.load(tmp_path, network()), str(tmp_path))


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_malicious_pickle(tmp_path):
    marker = tmp_path / "code-has-run"
    torch.save({"state_dict": Payload(marker)}, tmp_path / "weights.pt")
    (tmp_path / "weights.bin").write_bytes(pickle.dumps(Payload(marker)))
    small, plan = compress(network())
    rf.save(small, plan, tmp_path / "saved")
    for name in ("weights.pt", "weights.bin"):
        refusal = ("is refused", "could run code", "save model.state_dict() alone")
        told(zoo.ZooError, lambda name=name: zoo.load_weights(network(), tmp_path / name), name, *refusal)
        (tmp_path / "saved" / "model.safetensors").write_bytes((tmp_path / name).read_bytes())
        told(rf.StoreError, lambda: rf.load(tmp_path / "saved", network()), "damaged")
    assert not marker.exists()
    pickle.loads((tmp_path / "weights.bin").read_bytes())
    assert marker.exists(), "the payload would have worked"


def test_crash_or_full_disk_while_saving(tmp_path, monkeypatch):
    old, plan = compress(network())
    rf.save(old, plan, tmp_path)
    new, other = compress(network(seed=1))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            rf.save(new, other, tmp_path)
    assert torch.equal(rf.load(tmp_path, network()).model(X), old(X))
    rf.save(new, other, tmp_path)
    assert torch.equal(rf.load(tmp_path, network()).model(X), new(X))


@pytest.mark.parametrize("stop_at", [1, 2])
def test_interrupted_long_run(tmp_path, stop_at):
    recipe = rf.Recipe(epochs=3, batch_size=16, learning_rate=0.05, distill=rf.Distill())
    teacher = network()
    start, _ = compress(teacher, "truncate", budget="params=0.6")
    straight = copy.deepcopy(start)
    rf.finetune(straight, PAIR, teacher=teacher, recipe=recipe)

    def interrupt(progress):
        if progress.finished is not None and progress.epoch == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rf.finetune(copy.deepcopy(start), PAIR, teacher=teacher, recipe=recipe, directory=tmp_path, progress=interrupt)
    resumed = copy.deepcopy(start)
    history = rf.finetune(resumed, PAIR, teacher=teacher, recipe=recipe, directory=tmp_path)
    assert history.resumed_from == stop_at
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


@pytest.mark.parametrize("method", ["nuclear", "maxnorm", "relu", "sequential"])
@pytest.mark.parametrize("what", ["zero", "constant", "tiny", "dead"])
def test_one_zero_or_constant_layer_does_not_stop_the_others(method, what):
    model = network()
    with torch.no_grad():
        if what == "zero":
            model[2].weight.zero_()
        elif what == "constant":
            model[2].weight.fill_(0.1)
        elif what == "tiny":
            model[2].weight.mul_(1e-30)  # the bias alone is left in the outputs
        else:
            model[0].bias.fill_(-100.0)  # the activation behind it gives zeros
    small, plan = compress(model, method, budget="params=0.8")
    assert {entry.site for entry in plan.entries} == {"0", "2", "4"}
    assert plan.changed
    assert bool(torch.isfinite(small(X)).all())
    if what == "tiny":
        assert ("its outputs do not vary" in plan["2"].note) == (method == "maxnorm")
        return
    tied = [entry.note for entry in plan.entries if "singular values are equal" in entry.note]
    assert all(note.endswith("projected instead") for note in tied)
    assert bool(tied) == (method in ("nuclear", "maxnorm") and what != "constant")


def test_large_kernels_by_cp_are_searched_within_bounds_and_say_so(monkeypatch):
    from rankfold.compress.methods import cp

    solved = []
    monkeypatch.setattr(cp.Canonical, "_solve", lambda self, rank: solved.append((rank, self.iterations)) or [
        self.weight.new_zeros(size, rank) for size in self.weight.shape
    ])  # fmt: skip
    kernel = nn.Sequential(nn.Conv3d(64, 128, 3))
    site = rf.sites(kernel)["0"]
    found = cp.CP().decompose(site, rf.Form.CP, kernel[0].weight)
    assert found.errors.shape == (site.max_rank(rf.Form.CP) + 1,)
    work = sum(rank * times * kernel[0].weight.numel() * kernel[0].weight.dim() for rank, times in solved)
    assert work <= cp._WORK
    assert found.note.startswith("a large kernel: CP was searched")
    solved.clear()
    small = nn.Sequential(nn.Conv2d(8, 8, 3))
    found = cp.CP().decompose(rf.sites(small)["0"], rf.Form.CP, small[0].weight)
    assert found.note == ""
    assert found.iterations == 60


MIXED = {
    "plan": lambda m, data: rf.plan(m, "params=0.9", "sequential", data),
    "apply": lambda m, data: rf.apply_(m, rf.plan(m, "params=0.9", "project", data)),
    "evaluate": lambda m, data: rf.evaluate(m, data),
    "fit": lambda m, data: rf.fit(m, data, data, rf.Recipe(epochs=1, batch_size=16)),
    "overparametrize and fold": lambda m, data: rf.fold_(rf.overparametrize_(m, 2)),
    "adapt and merge": lambda m, data: rf.adapt.merge_(rf.deep_lora_(m, 2, data=data)),
    "reestimate": lambda m, data: rf.reestimate_(m, mixed(), [data]),
    "cost": lambda m, data: costs.model_cost(m, data[0][:2]),
}


def mixed() -> nn.Module:
    """In training mode, but for a BatchNorm that is frozen and a part that is, whose dropout is not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.3))
        model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), inner, nn.ReLU(), nn.Linear(32, 4))
    model.train()
    model[1].eval()
    inner.eval()
    inner[2].train()
    return model


@pytest.mark.parametrize("what", MIXED)
def test_modes_of_parts_are_left_as_found(what):
    data = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
    model = mixed()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    MIXED[what](model, data)
    after = {name: module.training for name, module in model.named_modules()}
    assert all(after[name] == mode for name, mode in before.items())
    if what not in ("fit", "reestimate"):
        now = dict(model.named_buffers())  # with the order of a pivoted layer's outputs, where one was made
        assert all(torch.equal(now[name], value) for name, value in statistics.items())
