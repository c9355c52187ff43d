"""SpectrumRecorder: laws of updates and subspaces, naive references, the hot path, and going on from a file."""

import math
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import rankfold as rf
from rankfold.linalg.manifold.subspaces import subspace_distance
from rankfold.record import RecordError, recorder, recording
from rankfold.record.measure import measure

seeds = st.integers(0, 2**31)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(m, r, seed):
    return torch.linalg.qr(draw(m, r, seed=seed))[0]


def network(dtype=torch.float32, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 12), nn.Linear(12, 5)]
        return nn.Sequential(*layers).to(dtype)


def train_(model, steps, seed=0):
    """A few steps that change every weight, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(steps):
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def recorded(model, epochs=3, **settings):
    with rf.SpectrumRecorder(model, **settings) as found:
        found.step(0)
        for epoch in range(1, epochs):
            train_(model, 1, seed=epoch)
            found.step(epoch)
    return found


# the distance of equation 14


def obeys_the_laws(distance):
    """Zero for one subspace in two bases, r for orthogonal ones, sin² for one angle, whatever the basis."""
    for seed, r in ((1, 1), (2, 3)):
        both = basis(9, 2 * r, seed)
        a, b = both[:, :r], both[:, r:]
        turn = basis(r, r, seed + 1)
        tilted = a.clone()
        tilted[:, 0] = math.cos(1e-7) * a[:, 0] + math.sin(1e-7) * b[:, 0]
        sound = (
            float(distance(a, a @ turn)) == pytest.approx(0, abs=1e-28),
            float(distance(a, b @ turn)) == pytest.approx(r),
            float(distance(a, tilted @ turn)) == pytest.approx(1e-14, rel=1e-6),
        )
        if not all(sound):
            return False
    return True


def test_subspace_distance_obeys_its_laws_and_wrong_ones_do_not():
    assert obeys_the_laws(subspace_distance)
    assert not obeys_the_laws(lambda a, b: a.shape[1] - (a.mT @ b).square().sum())  # as printed: loses 1e-14 in r
    assert not obeys_the_laws(lambda a, b: (a - b).square().sum())  # of bases, not of subspaces
    assert not obeys_the_laws(lambda a, b: a.shape[1] - (a.mT @ b).diagonal().square().sum())


@given(m=st.integers(1, 9), r=st.integers(1, 4), seed=seeds)
def test_subspace_distance_is_equation_14(m, r, seed):
    r = min(m, r)
    a, b = basis(m, r, seed), basis(m, r, seed + 1)
    found = float(subspace_distance(a, b))
    assert found == pytest.approx(r - float((a.mT @ b).square().sum()), abs=1e-12)
    assert found == pytest.approx(float(subspace_distance(b, a)), abs=1e-12)
    assert 0 <= found <= min(r, m - r) + 1e-12


def test_bases_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"equal shape .*\(4, 2\).*\(4, 1\)"):
        subspace_distance(basis(4, 2, 0), basis(4, 1, 0))


# one matrix at one moment


def naive(now, start, previous, rank):
    """What measure should say of plain matrices, in numpy."""
    u, s, vt = np.linalg.svd(now.numpy(), full_matrices=False)
    old_u, _, old_vt = np.linalg.svd(previous.numpy(), full_matrices=False)
    r = min(rank, len(s))
    left = r - np.linalg.norm(old_u[:, :r].T @ u[:, :r]) ** 2
    right = r - np.linalg.norm(old_vt[:r] @ vt[:r].T) ** 2
    behind = s[r] if r < len(s) else 0
    return s, np.linalg.svd((now - start).numpy(), compute_uv=False), (s[r - 1] - behind) / s[r - 1], left, right


@given(m=st.integers(1, 7), n=st.integers(1, 7), rank=st.integers(1, 4), seed=seeds)
def test_measure_equals_a_naive_reference(m, n, rank, seed):
    start, previous, now = (draw(m, n, seed=seed + i) for i in range(3))
    _, before = measure(0, previous, start, None, rank)
    found, _ = measure(1, now, start, before, rank)
    weight, update, gap, left, right = naive(now, start, previous, rank)
    assert found.weight.values.numpy() == pytest.approx(weight)
    assert found.update.values.numpy() == pytest.approx(update)
    got = (found.gap, found.left_distance, found.right_distance)
    assert got == pytest.approx((gap, left, right), abs=1e-9)
    if (n, m) != (1, 1) and rank < min(m, n):  # left and right exchanged would not pass
        assert got[1:] != pytest.approx((right, left), abs=1e-9)


@given(g=st.integers(1, 3), m=st.integers(2, 5), n=st.integers(2, 5), seed=seeds)
def test_groups_are_measured_as_so_many_matrices(g, m, n, seed):
    start, previous, now = (draw(g, m, n, seed=seed + i) for i in range(3))
    found, _ = measure(1, now, start, measure(0, previous, start, None, 1)[1], 1)
    each = [measure(1, now[i], start[i], measure(0, previous[i], start[i], None, 1)[1], 1)[0] for i in range(g)]
    assert found.weight.energy == pytest.approx(float(now.square().sum()))
    assert found.left_distance == pytest.approx(np.mean([one.left_distance for one in each]))
    assert found.gap == pytest.approx(min(one.gap for one in each))


def test_a_subspace_that_rounding_decides_has_no_distance():
    low = basis(8, 2, 0) @ basis(6, 2, 1).mT
    for matrix, rank, known in ((low, 2, True), (low, 3, False), (low.float(), 3, False), (0 * low, 1, False)):
        _, now = measure(0, matrix, matrix, None, rank)
        assert (now is not None) == known


@pytest.mark.parametrize(("dtype", "side"), [(torch.bfloat16, 256), (torch.float16, 1100)])
def test_half_precision_keeps_the_subspaces_of_full_weights(dtype, side):
    weight = draw(side, side)
    exact, _ = measure(0, weight.float(), weight.float(), None, 3)
    found, now = measure(0, weight.to(dtype), weight.to(dtype), None, 3)
    again, _ = measure(1, weight.to(dtype), weight.to(dtype), now, 3)
    assert found.gap == pytest.approx(exact.gap, rel=0.02)
    assert (again.left_distance, again.right_distance) == pytest.approx((0, 0), abs=1e-6)
    assert found.note == again.note == ""


def test_what_half_precision_makes_of_a_low_rank_is_rounding():
    low = (basis(300, 2, 0) @ basis(200, 2, 1).mT).bfloat16()
    for rank, known in ((2, True), (3, False)):
        found, now = measure(0, low, low, None, rank)
        assert (now is not None) == known
    assert found.note == "no gap and no distances: 2 of 3 singular values stand out of rounding"


# the recorder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_update_is_zero_at_first_and_true_later(dtype):
    model = network(dtype)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    frame = recorded(model).frame()
    assert list(frame.site.unique()) == ["0", "1", "3", "4"]
    first = frame[frame.epoch == 0]
    assert (first.update_norm == 0).all()
    assert (first.update_numerical_rank == 0).all()
    assert first.left_distance.isna().all()
    last = frame[frame.epoch == 2].set_index("site")
    for name, row in last.iterrows():
        weight = model.state_dict()[f"{name}.weight"].double()
        assert row.norm == pytest.approx(float(weight.norm()))
        assert row.update_norm == pytest.approx(float((weight - start[f"{name}.weight"].double()).norm()))
        assert row.left_distance >= 0
    assert (frame.note == "").all()


def test_ranks_are_those_of_the_spectrum():
    model = network()
    found = recorded(model, 2)
    row = found.frame(eps=0.5).set_index(["epoch", "site"]).loc[(1, "3")]
    spectrum = rf.spectrum(model[3].weight)
    assert row.numerical_rank == spectrum.numerical_rank(0.5)
    assert row.stable_rank == pytest.approx(spectrum.stable_rank)
    assert row.effective_rank == pytest.approx(spectrum.effective_rank)
    values = found.singular_values().query("epoch == 1 and site == '3' and of == 'weight'")
    assert values["value"].tolist() == pytest.approx(spectrum.values.tolist())
    assert values["index"].tolist() == list(range(1, 13))


def test_step_returns_while_the_decomposition_waits(monkeypatch):
    """Nothing of the measurement may run before step returns: it is held until the test lets it go."""
    gate = threading.Event()
    real = recorder.measure

    def held(*arguments):
        assert gate.wait(60)
        return real(*arguments)

    monkeypatch.setattr(recorder, "measure", held)
    model = network()
    found = rf.SpectrumRecorder(model)
    weight = model[3].weight.detach().clone()
    found.step(0)
    train_(model, 1)  # the copy was made before
    found.step(1)
    gate.set()
    found.close()
    norms = found.frame().query("site == '3'").norm.tolist()
    assert norms == pytest.approx([float(weight.double().norm()), float(model[3].weight.detach().double().norm())])


def test_copies_that_wait_are_bounded(monkeypatch):
    gate, reached, copies = threading.Event(), threading.Event(), []
    real_measure, real_read = recorder.measure, recorder.read
    monkeypatch.setattr(recorder, "measure", lambda *a: (gate.wait(60), real_measure(*a))[1])
    monkeypatch.setattr(recorder, "read", lambda *a: (copies.append(1), real_read(*a))[1])
    found = rf.SpectrumRecorder(network(), pending=2)
    copies.clear()

    def third():
        found.step(0)
        found.step(1)
        reached.set()
        found.step(2)

    thread = threading.Thread(target=third)
    thread.start()
    assert reached.wait(60)
    thread.join(0.05)
    assert thread.is_alive()
    assert len(copies) == 2
    gate.set()
    thread.join(60)
    assert len(copies) == 3
    assert len(found.frame()) == 3 * 4


def test_every_so_many_steps():
    model = network()
    with rf.SpectrumRecorder(model, where="3", every=3) as found:
        for step in range(8):
            found.step(step)
    assert found.frame().epoch.tolist() == [0, 3, 6]


def test_a_failure_in_the_background_names_epoch_and_site(monkeypatch):
    real = recorder.measure

    def broken(epoch, matrix, *rest):
        if epoch == 1 and matrix.shape == (12, 32):
            raise MemoryError("no room")
        return real(epoch, matrix, *rest)

    monkeypatch.setattr(recorder, "measure", broken)
    found = rf.SpectrumRecorder(network())
    for epoch in range(2):
        found.step(epoch)
    with pytest.raises(RecordError, match=r"epoch 1: measuring 3 failed \(MemoryError: no room\)"):
        found.frame()
    frame = found.frame()  # what could be measured is there, and the failure is noted
    assert len(frame) == 8
    assert frame.query("epoch == 1 and site == '3'").note.item() == "MemoryError: no room"
    found.step(2)
    with pytest.raises(KeyError, match="training"), found:
        raise KeyError("training")
    assert len(found.frame()) == 12


def test_the_error_of_the_training_is_not_hidden(monkeypatch):
    monkeypatch.setattr(recorder, "measure", lambda *_: 1 / 0)
    found = rf.SpectrumRecorder(network())
    found.step(0)
    with pytest.raises(KeyError, match="training"), found:
        raise KeyError("training")
    found.step(1)
    with pytest.raises(RecordError), found:
        pass


def test_weights_that_are_not_finite_are_a_row_with_a_reason():
    model = network()
    with rf.SpectrumRecorder(model) as found:
        found.step(0)
        kept = model[3].weight.detach().clone()
        with torch.no_grad():
            model[3].weight[0, 0] = math.nan
        found.step(1)
        with torch.no_grad():
            model[3].weight.copy_(kept)
        found.step(2)
        found.step(3)
    rows = found.frame().query("site == '3'").set_index("epoch")
    assert "1 of 384 values" in rows.note[1]
    assert rows.loc[1, ["norm", "stable_rank", "left_distance"]].isna().all()
    assert pd.isna(rows.numerical_rank[1])
    assert math.isnan(rows.left_distance[2])  # nothing before it to be compared with
    assert rows.left_distance[3] == pytest.approx(0, abs=1e-24)
    assert found.singular_values().query("site == '3'").epoch.unique().tolist() == [0, 2, 3]


class Halves(nn.Module):
    """A product of two factors, which makes the weight what it was."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return u * s.sqrt(), s.sqrt().unsqueeze(-1) * vh


def test_the_product_is_measured_when_layers_become_products_and_back():
    model = network()
    expected = model[3].weight.detach().clone()
    with rf.SpectrumRecorder(model, where="3") as found:
        found.step(0)
        parametrize.register_parametrization(model[3], "weight", Halves())
        with torch.autocast("cpu", torch.bfloat16):  # the caller's rounding is not the weight's
            found.step(1)
        parametrize.remove_parametrizations(model[3], "weight")
        found.step(2)
        rf.apply_(model, rf.plan(model, rf.Ranks({"3": 4}), "truncate", example=torch.zeros(1, 3, 6, 6)))
        found.step(3)
        del model[3]
        model.insert(3, nn.Linear(32, 7))
        found.step(4)
        model[3] = nn.Identity()
        found.step(5)
    frame = found.frame().set_index("epoch")
    assert frame.norm[1] == pytest.approx(float(expected.double().norm()), rel=1e-6)
    assert frame.update_norm[1] < 1e-5
    assert frame.norm[2] == pytest.approx(frame.norm[1], rel=1e-6)
    assert frame.numerical_rank[[2, 3]].tolist() == [12, 4]
    assert frame.note[4] == "its shape is (7, 32) now and was (12, 32) at the start"
    assert frame.note[5] == "the model no longer has a weight of this name"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.again = self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.again(self.inner(self.attention(x, x, x)[0])))


def test_wrapped_shared_tied_and_attention_weights():
    model = Tied().train()
    modules = {name: id(module) for name, module in model.named_modules()}
    found = recorded(torch.compile(nn.DataParallel(model), backend="eager"), 2)
    rows = found.frame().query("epoch == 1").set_index("site")
    projections = [f"attention.{name}_proj" for name in ("q", "k", "v")]
    assert {"embed", "head", "attention.out_proj", *projections} < set(rows.index)
    assert rows.index.tolist().count("inner") + rows.index.tolist().count("again") == 1
    assert rows.norm["embed"] == rows.norm["head"] == pytest.approx(float(model.embed.weight.detach().double().norm()))
    q, k, v = model.attention.in_proj_weight.detach().double().chunk(3)
    for name, part in zip(projections, (q, k, v), strict=True):
        assert rows.norm[name] == pytest.approx(float(part.norm()))
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_of_products_is_recorded_from_the_first_and_after_folding():
    model = Tied().train()
    plain = rf.SpectrumRecorder(model)
    plain.step(0)
    rf.overparametrize_(model, 3)
    found = rf.SpectrumRecorder(model)
    found.step(0)
    plain.step(1)
    rf.fold_(model)
    found.step(1)
    kinds = plain.frame().site.unique().tolist()
    assert "attention.q_proj" in kinds
    for frame in (plain.frame(), found.frame()):
        assert frame.site.unique().tolist() == kinds
        assert (frame.note == "").all()
        assert (frame.update_norm < 1e-5).all()


# files


def same(a, b):
    pd.testing.assert_frame_equal(a.frame(), b.frame(), check_exact=True)
    pd.testing.assert_frame_equal(a.singular_values(), b.singular_values(), check_exact=True)


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recording_that_goes_on_is_the_one_that_was_never_stopped(cut, dtype, tmp_path):
    def run(model, found, epochs):
        for epoch in epochs:
            train_(model, 1, seed=epoch)
            found.step(epoch)

    model = network(dtype)
    whole = rf.SpectrumRecorder(model, rank=3, every=2)
    run(model, whole, range(6))

    model = network(dtype)
    first = rf.SpectrumRecorder(model, rank=3, every=2)
    run(model, first, range(cut))
    first.save(tmp_path / "run.safetensors")
    again = network(dtype, seed=1)  # W(0) comes from the file, not from what the new process starts with
    again.load_state_dict(model.state_dict())
    second = rf.SpectrumRecorder.load(tmp_path / "run.safetensors", again)
    run(again, second, range(cut, 6))
    same(second, whole)

    wrong = rf.SpectrumRecorder(again, rank=3, every=2)  # starts anew: another W(0)
    wrong.step(9)
    assert not wrong.frame().update_norm.equals(whole.frame().query("epoch == 4").update_norm)


def test_save_and_load_are_exact_with_rows_that_are_missing(tmp_path):
    model = network()
    found = recorded(model, 2)
    with torch.no_grad():
        model[4].weight.fill_(math.inf)
    found.step(2)
    for path in (tmp_path / "a.safetensors", tmp_path / "deep" / "b.safetensors"):
        found.save(path)
        found = rf.SpectrumRecorder.load(path)
        with pytest.raises(ValueError, match=r"load\(path, model\)"):
            found.step(3)
    assert (tmp_path / "a.safetensors").read_bytes() == path.read_bytes()
    assert found.frame().query("epoch == 2 and site == '4'").norm.isna().all()
    empty = rf.SpectrumRecorder(model)
    empty.save(path)
    same(rf.SpectrumRecorder.load(path), empty)
    assert len(empty.frame()) == len(empty.singular_values()) == 0


def into_factors(model):
    rf.apply_(model, rf.plan(model, "params=0.6", "truncate", example=torch.zeros(2, 12, dtype=torch.long)))


CHANGES = {
    "factors": into_factors,
    "geolora": lambda model: rf.geolora_(model, 2),
    "debora": lambda model: rf.debora_(model, 2),
    "weight norm": lambda model: nn.utils.parametrizations.weight_norm(model[2]),
    "gone": lambda model: model.__setitem__(4, nn.Identity()),
}


@pytest.mark.filterwarnings("ignore:rank .* is more than some layers can have")
@pytest.mark.parametrize("change", CHANGES)
def test_a_recording_goes_on_whatever_its_layers_have_become(change, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 16), nn.Conv1d(12, 12, 3), nn.Linear(14, 24), nn.ReLU(), nn.Linear(24, 8))
    running = rf.SpectrumRecorder(model, rank=2)
    running.step(0)
    CHANGES[change](model)
    running.step(1)
    running.save(tmp_path / "run.safetensors")
    resumed = rf.SpectrumRecorder.load(tmp_path / "run.safetensors", model)
    for each in (running, resumed):
        each.step(2)
    same(running, resumed)
    notes = resumed.frame().query("epoch == 2").set_index("site").note
    assert [*notes] == ["", "", "", "the model no longer has a weight of this name" if change == "gone" else ""]


def test_a_recording_that_does_not_tell_its_layers_reads_those_of_the_model(monkeypatch, tmp_path):
    """As files of before do not."""
    model = network()
    running = recorded(model, 2)
    monkeypatch.setattr(recording, "told", lambda layer: None)
    running.save(tmp_path / "run.safetensors")
    resumed = rf.SpectrumRecorder.load(tmp_path / "run.safetensors", model)
    for each in (running, resumed):
        each.step(9)
    same(running, resumed)
    with pytest.raises(ValueError, match="recorded 3, which is no site of this Sequential"):
        rf.SpectrumRecorder.load(tmp_path / "run.safetensors", network()[:3])


@pytest.mark.parametrize("label", [np.int64(3), np.float32(3), torch.tensor(3.0)])
def test_labels_may_be_numbers_of_any_kind(label, tmp_path):
    found = rf.SpectrumRecorder(network())
    found.step(label)
    found.save(tmp_path / "run.safetensors")
    assert rf.SpectrumRecorder.load(tmp_path / "run.safetensors").last == 3.0


def test_a_wrong_file_or_model_is_said_in_one_line(tmp_path):
    found = recorded(network(), 2)
    found.save(tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="recorded 3, which is no site of this Sequential"):
        rf.SpectrumRecorder.load(tmp_path / "run.safetensors", network()[:3])
    data = (tmp_path / "run.safetensors").read_bytes()
    for wrong in (data[:100], b"", b"{}" * 40):
        (tmp_path / "bad").write_bytes(wrong)
        with pytest.raises(ValueError, match="damaged, or not a recording"):
            rf.SpectrumRecorder.load(tmp_path / "bad")


def test_what_cannot_be_recorded_is_refused():
    with pytest.raises(ValueError, match="where='x': no layer of this model matches"):
        rf.SpectrumRecorder(network(), "x")
    with pytest.raises(ValueError, match=r"3 .*meta"):
        rf.SpectrumRecorder(network().to("meta"), "3")
    for setting in ("rank", "every", "pending"):
        with pytest.raises(ValueError, match=f"{setting} must be at least 1"):
            rf.SpectrumRecorder(network(), **{setting: 0})
    found = recorded(network())
    for label in (2, 1, math.nan, math.inf):
        with pytest.raises(ValueError, match="labels of epochs must grow"):
            found.step(label)


def test_the_picture_shows_every_site_and_survives_odd_values(tmp_path):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    nn.init.zeros_(model[1].weight)
    with rf.SpectrumRecorder(model) as found:
        with pytest.raises(ValueError, match="nothing to draw"):
            found.plot(tmp_path / "none.svg")
        found.step(0)
        found.plot(tmp_path / "one.png", where="0")
        with torch.no_grad():
            model[0].weight += 1
            model[2].weight[0] = math.nan
        found.step(1)
        found.plot(tmp_path / "all.svg")
        found.plot(tmp_path / "some.svg", where="0")
    text = (tmp_path / "all.svg").read_text()
    assert all(f"{i}  (Linear" in text for i in range(3))
    assert "zero throughout" in text
    assert "2  (Linear" not in (tmp_path / "some.svg").read_text()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="named like 'q'"):
        found.plot(tmp_path / "x.svg", where="q")


# the Trainer of transformers


class Classifier(nn.Module):
    """As the Trainer wants it: named inputs in, a mapping with the loss out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x, labels=None):
        scores = self.head(torch.tanh(self.body(x)))
        found = {} if labels is None else {"loss": nn.functional.cross_entropy(scores, labels)}
        return found | {"logits": scores}


def trainer(model, recorder, place, epochs, **how):
    from transformers import Trainer, TrainingArguments

    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    data = [{"x": row, "labels": int(label)} for row, label in zip(x, x[:, :3].argmax(1), strict=True)]
    asked = TrainingArguments(
        output_dir=str(place), num_train_epochs=epochs, per_device_train_batch_size=8, learning_rate=0.05, use_cpu=True,
        save_strategy="epoch", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    return Trainer(model, asked, train_dataset=data, callbacks=[recorder.callback(**how)])


def test_in_the_trainer_of_transformers_epochs_are_recorded_and_gone_on_with(tmp_path):
    model, twin = Classifier(), Classifier()
    with rf.SpectrumRecorder(model, rank=2) as whole:
        trainer(model, whole, tmp_path / "whole", 3).train()
    frame = whole.frame()
    assert sorted(set(frame.epoch)) == [0.0, 1.0, 2.0, 3.0]
    assert frame.query("epoch == 3.0 and site == 'head'").spectral_norm.item() == pytest.approx(
        float(torch.linalg.svdvals(model.head.weight.detach())[0])
    )
    (checkpoint,) = (tmp_path / "whole").glob("checkpoint-12")  # of the second epoch, six steps each
    with rf.SpectrumRecorder.load(checkpoint / "spectra.safetensors", twin) as again:
        assert again.last == 2.0
        trainer(twin, again, tmp_path / "again", 3).train(resume_from_checkpoint=str(checkpoint))
    pd.testing.assert_frame_equal(again.frame(), frame)


def test_in_the_trainer_of_transformers_probes_are_asked_every_so_many_steps(tmp_path):
    asked = []

    class Probe:
        columns = ("training",)

        def __call__(self, model):
            asked.append(1)
            return {"head": {"training": float(model.training)}}

    model = Classifier()
    with rf.SpectrumRecorder(model, rank=2, probe=Probe()) as recorder:
        trainer(model, recorder, tmp_path, 1, steps=4).train()
    assert sorted(set(recorder.frame().epoch)) == [0.0, 4.0, 6.0]
    assert len(asked) == 3
    with pytest.raises(ValueError, match="steps must be"):
        recorder.callback(steps=0)


@pytest.mark.parametrize("stops", ["of itself", "early"])
def test_the_last_step_is_recorded_also_where_the_best_checkpoint_is_put_back(tmp_path, stops):
    from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

    model, held = Classifier(), {}
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    data = [{"x": row, "labels": int(label)} for row, label in zip(x, x[:, :3].argmax(1), strict=True)]

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            held[state.global_step] = model.head.weight.detach().clone()

    asked = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, learning_rate=0.05, use_cpu=True,
        eval_strategy="epoch", save_strategy="epoch", report_to="none", disable_tqdm=True, logging_strategy="no",
        load_best_model_at_end=True, metric_for_best_model="eval_worst", greater_is_better=True,
    )  # fmt: skip
    scores = iter([1.0, 0.0, 0.0])  # the first epoch is the best
    with rf.SpectrumRecorder(model, rank=2) as recorder:
        early = [EarlyStoppingCallback(1)] if stops == "early" else []
        calls = [recorder.callback(steps=5), Keep(), *early]
        asked.num_train_epochs = 5 if early else 2
        Trainer(
            model, asked, train_dataset=data, eval_dataset=data[:8], callbacks=calls,
            compute_metrics=lambda given: {"worst": next(scores)},
        ).train()  # fmt: skip
    assert torch.equal(model.head.weight, held[6])
    assert sorted(held)[-1] == 12
    frame = recorder.frame()
    assert sorted(set(frame.epoch)) == [0.0, 5.0, 10.0, 12.0]
    for step in (5, 10, 12):
        norm = float(torch.linalg.svdvals(held[step])[0])
        assert frame.query(f"epoch == {step} and site == 'head'").spectral_norm.item() == pytest.approx(norm)
