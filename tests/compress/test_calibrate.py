"""Second moments of every site against the rows gathered by hand, whatever the shape of the data."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from networks import NETWORKS, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rankfold as rf
from rankfold.batches import batches_of, size_of
from rankfold.compress.measured import Statistics
from rankfold.compress.planning.planner import plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.ranks.budget import Ranks
from rankfold.compress.statistics import calibrate
from rankfold.sites import Site, opened, sites
from rankfold.sites import patches as places


def rows_by_hand(site: Site, layer: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
    """The rows at the site's side: outputs as they are, inputs as what each output position reads."""
    if site.layer.side == "output":
        rows = output if site.kind in ("Linear", "Conv1D") else output.movedim(1, -1)
        rows = rows.reshape(-1, site.shape[0] * site.groups)
        return rows if site.groups == 1 else rows.reshape(len(rows), site.groups, -1).transpose(0, 1)
    if site.kind in ("Linear", "Conv1D"):
        return inputs.reshape(-1, site.shape[1])
    eye = torch.eye(site.shape[1], dtype=inputs.dtype).reshape(site.shape[1], *layer.weight.shape[1:])
    patches = layer._conv_forward(inputs, eye, None)  # the layer's own padding, stride and dilation
    return patches.movedim(1, -1).reshape(-1, site.shape[1])


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_moments_are_those_of_the_rows(case: Case, monkeypatch):
    monkeypatch.setattr(places, "POSITIONS", 10**6)
    model, x = case.model(), case.inputs()
    found = sites(model)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with opened(model), torch.no_grad():
        for site in found:
            model.get_submodule(site.name).register_forward_hook(
                lambda module, args, output, name=site.name: seen.update({name: (args[0], output)})
            )
        model(x)
        expected = {s.name: rows_by_hand(s, model.get_submodule(s.name), *seen[s.name]) for s in found}
    parts = [x[:1], x[1:]] if len(x) > 1 else [x]
    whole, cut = calibrate(model, [x], found), calibrate(model, parts, found)
    for site in found:
        rows = expected[site.name]
        centred = rows - rows.mean(-2, keepdim=True)
        covariance = centred.mT @ centred / rows.shape[-2]
        known = whole.sites[site.name]
        # patches of kernels are gathered in float32
        torch.testing.assert_close(known.covariance, covariance, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(known.moments.mean, rows.mean(-2), rtol=1e-5, atol=1e-6)
        if "sequence-first" in case.name or ("no-bias" in case.name and "attention" in case.name):
            continue  # cut along the sequence, attention sees something else
        torch.testing.assert_close(cut.sites[site.name].covariance, known.covariance, rtol=1e-9, atol=1e-11)


@dataclass
class Splits:
    """Like the splits of ``rankfold.zoo``."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int):
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))


def loaders(x: Tensor, y: Tensor):
    data = TensorDataset(x, y)
    return {
        "tensor": x,
        "pair": (x, y),
        "batches of inputs": list(x.split(3)),
        "batches of pairs": list(zip(x.split(3), y.split(3), strict=True)),
        "batches of lists": [[a, b] for a, b in zip(x.split(3), y.split(3), strict=True)],
        "one-tuples": [(part,) for part in x.split(4)],
        "mappings": [{"input": a, "labels": b} for a, b in zip(x.split(3), y.split(3), strict=True)],
        "mapping": {"input": x, "labels": y},
        "loader": DataLoader(data, batch_size=4),
        "data set": data,
        "splits": Splits(x, y),
        "generator": (part for part in x.split(5)),
    }


@pytest.mark.parametrize("kind", list(loaders(torch.zeros(1, 1), torch.zeros(1))))
def test_every_kind_of_data_gives_the_same_statistics(kind: str, generator):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    x = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    data = loaders(x, torch.arange(11))[kind]
    found = sites(model)
    statistics = calibrate(model, data, found, metric_samples=0, batch_size=2)
    assert statistics.samples == 11
    reference = calibrate(model, [x], found, metric_samples=0)
    for name, known in reference.sites.items():
        assert statistics.sites[name].moments.count == 11
        torch.testing.assert_close(statistics.sites[name].covariance, known.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 4, 5, 11, 50])
def test_the_number_of_samples_is_kept_to_the_last_one(limit: int, generator):
    model = nn.Sequential(nn.Linear(5, 3)).double()
    x = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    statistics = calibrate(model, list(x.split(4)), sites(model), samples=limit)
    assert statistics.samples == statistics.sites["0"].moments.count == min(limit, 11)
    mean = model(x[:limit]).detach().mean(0)
    torch.testing.assert_close(statistics.sites["0"].moments.mean, mean)


def test_data_that_can_be_read_only_once_is_refused_where_it_is_read_twice():
    model = nn.Sequential(nn.Linear(5, 3))
    with pytest.raises(ValueError, match="a generator, which can be read only once"):
        calibrate(model, (part for part in torch.randn(6, 5).split(2)), sites(model))


def test_progress_is_told_in_samples():
    told = []
    model = nn.Sequential(nn.Linear(5, 3))
    calibrate(model, list(torch.randn(10, 5).split(4)), sites(model), progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "calibrating"] == [("calibrating", done, 2048) for done in (4, 8, 10)]


def test_layers_that_the_data_never_reaches_are_listed():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    statistics = calibrate(model, [torch.randn(6, 4)], sites(model))
    assert statistics.unreached == ("unused",)
    assert set(statistics.sites) == {"used"}


def test_a_layer_called_twice_sees_both(generator):
    layer = nn.Linear(4, 4).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    known = calibrate(model, [x], sites(model)).sites["0"]
    rows = torch.cat([layer(x), model(x)]).detach()
    assert known.moments.count == 12
    torch.testing.assert_close(known.moments.mean, rows.mean(0))


def test_a_single_bad_value_is_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    x = torch.randn(6, 4)
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"0 \(Linear 3×4\): .* activations .* NaN or infinite"):
        calibrate(model, [torch.randn(6, 4), x], sites(model))


def test_nothing_to_calibrate_on():
    model = nn.Sequential(nn.Linear(4, 3))
    for data in ([], [torch.empty(0, 4)], torch.empty(0, 4), DataLoader(TensorDataset(torch.empty(0, 4)))):
        with pytest.raises(ValueError, match="calibration data is empty"):
            calibrate(model, data, sites(model))


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_survive_their_file(name: str, tmp_path):
    model, batch = network(name)
    statistics = calibrate(model, [batch], sites(model))
    statistics.save(tmp_path / "s.safetensors")
    again = Statistics.load(tmp_path / "s.safetensors")
    assert (again.samples, again.unreached) == (statistics.samples, statistics.unreached)
    assert again.sites.keys() == statistics.sites.keys()
    for site, known in statistics.sites.items():
        other = again.sites[site]
        assert (other.absorber, other.free) == (known.absorber, known.free)
        assert other.moments.count == known.moments.count
        assert torch.equal(other.moments.mean, known.moments.mean)
        assert torch.equal(other.moments.covariance_sum, known.moments.covariance_sum)
        assert (other.metric is None) == (known.metric is None)
        assert known.metric is None or torch.equal(other.metric, known.metric)
    assert again.to_bytes() == statistics.to_bytes()
    if name == "conv_net":
        absorbers = {site: known.absorber for site, known in again.sites.items()}
        assert absorbers == {"stem": "norm", "block.0": "block.1", "block.3": None, "shortcut": None, "head": None}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not a file of tensors",
        lambda data: data.replace(b"rankfold.statistics", b"rankfold.statistick"),
        lambda data: data.replace(b"|mean", b"|meen"),
        lambda data: data.replace(b'|metric":{"dtype":"F', b'|metric":{"dtype":"I'),
    ],
    ids=["half", "empty", "foreign", "other metadata", "other names", "whole numbers"],
)
def test_damaged_statistics_are_refused_in_one_line(spoil, tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    path = tmp_path / "s.safetensors"
    path.write_bytes(spoil(calibrate(model, [torch.randn(6, 4)], sites(model)).to_bytes()))
    with pytest.raises(ValueError, match=r"s\.safetensors: damaged, or not a statistics file") as caught:
        Statistics.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="statistics file"):
        Statistics.load(tmp_path / "missing")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_networks_are_measured_in_full(dtype: torch.dtype):
    model, (x, _) = network("conv_net", dtype)
    known = calibrate(model, [x], sites(model)).sites["head"]
    assert known.covariance.dtype == torch.float64
    with torch.no_grad():
        seen = []
        handle = model.head.register_forward_hook(lambda module, args, output: seen.append(output))
        model(x.to(dtype).contiguous(memory_format=torch.channels_last))  # another order rounds otherwise
        handle.remove()
    torch.testing.assert_close(known.moments.mean, seen[0].double().mean(0))


def test_a_large_mean_costs_no_digits(generator):
    """Deliberately hard: a mean a million times the spread, which a sum of squares less the square of sums loses."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False).double())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
    x = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    far = calibrate(model, list((x + 1e7).split(7)), sites(model), metric_samples=0, samples=None).sites["0"].covariance
    near = torch.cov(x.T, correction=0)
    torch.testing.assert_close(far, near, rtol=1e-6, atol=1e-7)
    naive = ((x + 1e7).float().T @ (x + 1e7).float()) / 500 - (x + 1e7).float().mean(0).outer((x + 1e7).float().mean(0))
    assert not torch.allclose(naive.double(), near, rtol=0.5)


def test_patches_are_spread_over_the_image():
    """Of many places a sample: other places in other samples, and none preferred."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False))
    site = sites(model)[0]
    x = torch.arange(2 * 64.0).reshape(1, 2, 8, 8).repeat(50, 1, 1, 1)
    rows = site.layer.rows(model[0], x, model(x))
    assert rows.shape == (50 * places.POSITIONS, 18)
    every = F.unfold(x[:1], 3, padding=1)[0].T
    counts = (rows[:, None, 4] == every[None, :, 4]).sum(0)
    assert int(counts.min()) > 0.5 * float(counts.float().mean())
    assert int(counts.max()) < 2 * float(counts.float().mean())


def test_a_hugging_face_data_set_is_cut_into_batches():
    import datasets

    rows = torch.arange(12.0).reshape(6, 2)
    made = datasets.Dataset.from_dict({"x": rows.tolist(), "text": list("abcdef"), "label": [0, 1] * 3})
    batches = list(batches_of(made, 4))
    assert [sorted(batch) for batch in batches] == [["label", "x"]] * 2
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), rows)
    assert size_of(batches[0]) == 4
    with pytest.raises(ValueError, match="but text: tokenize"):
        list(batches_of(made.select_columns("text")))
    with pytest.raises(ValueError, match="streamed data set gives single samples"):
        list(batches_of(made.to_iterable_dataset()))


def test_statistics_of_another_model_are_refused():
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(2))
    known = Calibration(statistics=calibrate(one, [torch.randn(20, 6)], sites(one)))
    plan(one, "params=0.9", "project", [torch.randn(20, 6)], calibration=known)
    with pytest.raises(ValueError, match="taken of another model"):
        plan(other, "params=0.9", "project", [torch.randn(20, 6)], calibration=known)


def test_fewer_rows_than_the_rank_are_told():
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    made = plan(model, Ranks({"0": 5}), "project", [torch.randn(3, 12)])
    assert made["0"].note == "rank 5 was fitted to only 3 rows of data: give more samples"


@pytest.mark.parametrize("samples", [1, 3, 12])
@pytest.mark.parametrize("method", ["project", "sequential"])
def test_a_plan_counts_every_layer_that_was_fitted_to_too_few_samples(samples, method, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(24, 24), nn.Tanh())))
    known = rf.profile(net, torch.randn(samples, 24), method=method)
    made = known.plan(Ranks({"0": 14, "2": 14, "4": 14}))
    (told,) = (note for note in made.notes if "too few samples" in note)
    assert told.startswith("too few samples for 3 of 3 layers (0, 2, 4)")
    assert all(entry.few for entry in made.entries)
    assert not any("without data" in entry.note and "was fitted to" in entry.note for entry in made.entries)
    if method == "project":
        known.save(tmp_path / "profile")
        assert rf.Profile.load(tmp_path / "profile", net).plan(made.budgets).notes == made.notes
    made.save(tmp_path / "plan.json")
    assert rf.Plan.load(tmp_path / "plan.json").entries == made.entries


class PositionsFirst(nn.Module):
    """An encoder in either order of its axes, of samples first."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.block = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=not first)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x.transpose(0, 1)).mean(0) if self.first else self.block(x).mean(1))


def test_samples_that_are_held_back_are_held_back_whatever_the_order_of_the_axes():
    torch.manual_seed(0)
    x = torch.randn(30, 1, 16) + 0.3 * torch.randn(30, 7, 16)
    nets = PositionsFirst(False).eval(), PositionsFirst(True).eval()
    nets[1].load_state_dict(nets[0].state_dict())
    usual, first = (calibrate(net, [x], sites(net)).sites for net in nets)
    for name, known in usual.items():
        torch.testing.assert_close(first[name].parts[1].gram, known.parts[1].gram, rtol=1e-4, atol=1e-4)
    attention = nets[1].block.self_attn
    held = F.linear(x[3::4].flatten(0, 1), attention.in_proj_weight[:16]).double()  # of 30 samples every fourth
    found = first["block.self_attn.q_proj"].parts[1].gram
    torch.testing.assert_close(found, (held.mT @ held).detach(), rtol=1e-4, atol=1e-4)


def test_padding_counts_nowhere_whatever_the_order_of_the_axes():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return (self.a(x.transpose(0, 1)).transpose(0, 1) * attention_mask.unsqueeze(-1)).mean(1)

    torch.manual_seed(0)
    x, mask = torch.randn(8, 8, 4), torch.arange(8).expand(8, -1) < torch.arange(1, 9).unsqueeze(1)
    net = Masked().eval()
    moments = calibrate(net, [{"x": x, "attention_mask": mask}], sites(net)).sites["a"].moments
    rows = x[mask].double()
    torch.testing.assert_close(moments.gram, rows.mT @ rows)


class WritesInPlace(nn.Module):
    """A state that is written to as the steps go, as some recurrent language models do."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        state = torch.ones(len(x), 8)
        for step in range(x.shape[1]):
            state += torch.tanh(self.enter(x[:, step])) * state
        return self.leave(state)


def test_a_network_that_cannot_be_differentiated_is_compressed_and_told():
    torch.manual_seed(0)
    net, x = WritesInPlace(), torch.randn(32, 3, 6)
    with pytest.raises(RuntimeError, match="inplace"):
        net(x).sum().backward()
    with pytest.warns(UserWarning, match="cannot be differentiated .*inplace.* each one by itself"):
        plan = rf.plan(net, "params=0.8", data=x)
    small = rf.apply_(net, plan)
    assert plan.changed
    assert sum(p.numel() for p in small.parameters()) == plan.after.params
