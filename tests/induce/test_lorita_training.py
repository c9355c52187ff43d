"""Training products of factors: optimizers, precision, compilation, processes, and which way a layer is applied."""

from __future__ import annotations

import copy
import socket
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from cases import CASES, Case
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rankfold import Recipe, fold_, overparametrize_
from rankfold.induce import LORITA, LORITA_RELAXED, PAPER_FCN, factors, is_overparametrized
from rankfold.induce.serial import serial_is_cheaper
from rankfold.train import fit
from rankfold.zoo import load_data


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2, groups=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(54, 16), nn.ReLU(), nn.Linear(16, 10),
        )  # fmt: skip


def digits(count: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30, clip: float | None = None
) -> list[float]:
    x, y = digits()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


# ---- one by one, or multiplied out -----------------------------------------------------------------------------------


def calls(layer: nn.Module, x: Tensor) -> int:
    """How often a forward forms the product."""
    count = []
    handle = layer.parametrizations.weight[0].register_forward_hook(lambda *_: count.append(1))  # type: ignore[union-attr,index]
    layer(x)
    handle.remove()
    return len(count)


LAYERS = [case for case in CASES if case.name.startswith(("linear", "hf-conv1d", "conv"))]


@pytest.mark.parametrize("case", LAYERS, ids=repr)
def test_either_way_computes_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # a tenth of a second each time, in a process as full as that of a test suite
    monkeypatch.setattr("rankfold.induce.overparametrize.warn_of_earlier_optimizers", lambda *_: None)
    model = overparametrize_(case.model(), 3, start="random", generator=torch.Generator().manual_seed(1))
    x = case.inputs().requires_grad_()
    outputs, gradients = [], []
    for answer in (True, False):
        monkeypatch.setattr("rankfold.induce.serial.serial_is_cheaper", lambda *args, answer=answer: answer)
        one_by_one = answer and "groups" not in case.name
        assert calls(model[0], x) == (0 if one_by_one else 1)  # type: ignore[index]
        y = model(x)
        outputs.append(y)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *model.parameters()]))
    torch.testing.assert_close(outputs[0], outputs[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_input_has_the_name_that_torch_gives_it() -> None:
    for layer, shape in (
        (nn.Linear(6, 4), (2, 6)),
        (nn.Conv2d(3, 4, 2), (2, 3, 5, 5)),
        (nn.Conv1d(4, 4, 2, groups=2), (4, 5)),
    ):
        model, x = overparametrize_(nn.Sequential(layer)), torch.randn(shape)
        assert torch.equal(model[0](input=x), model(x))


def test_the_cheaper_way_is_taken_for_the_layer_and_the_batch() -> None:
    linear = overparametrize_(nn.Sequential(nn.Linear(64, 64)), 3)[0]
    assert calls(linear, torch.zeros(4, 64)) == 0  # 4·3·64² < 2·64³ + 4·64²
    assert calls(linear, torch.zeros(64, 64)) == 1
    assert calls(linear, torch.zeros(1, 64, 64)) == 1
    conv = overparametrize_(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), 3)[0]
    assert calls(conv, torch.zeros(1, 16, 4, 4)) == 0
    assert calls(conv, torch.zeros(16, 4, 4)) == 0
    assert calls(conv, torch.zeros(8, 16, 32, 32)) == 1
    with parametrize.cached():  # formed once, then free
        assert calls(linear, torch.zeros(1, 64)) == 1
        assert calls(linear, torch.zeros(1, 64)) == 0


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_multiply_adds_decide(depth: int) -> None:
    """Against the counts of torch's own counter, for a linear layer in training."""
    from torch.utils.flop_counter import FlopCounterMode

    n = 24
    layer = overparametrize_(nn.Sequential(nn.Linear(n, n, bias=False)), depth)[0]
    chain = factors(nn.Sequential(layer))["0"]
    product = layer.parametrizations.weight[0]
    for rows in (1, 5, 12, 23, 24, 25, 60, 200):
        x = torch.randn(rows, n, requires_grad=True)
        counts = []
        for one_by_one in (True, False):
            with FlopCounterMode(display=False) as counter:
                y = x
                for factor in reversed(chain) if one_by_one else [layer.weight]:
                    y = F.linear(y, factor)
                y.sum().backward()
            counts.append(counter.get_total_flops())
        assert serial_is_cheaper(product.sizes, product.macs, rows) == (counts[0] < counts[1]), rows


def test_attention_forms_its_product_once_in_a_step() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = overparametrize_(nn.Sequential(attention), 3)
    count = []
    attention.parametrizations.in_proj_weight[0].register_forward_hook(lambda *_: count.append(1))  # type: ignore[union-attr,index]
    x = torch.randn(2, 5, 8)
    model[0](x, x, x)
    assert len(count) == 1
    model[0].eval()
    model[0](x, x, x)
    assert len(count) == 2


# ---- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", ["momentum", "adam", "adamw"])
def test_optimizers_train_the_factors_and_their_state_goes_on(kind: str, clip: float | None) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        if kind == "momentum":
            return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](model.parameters(), lr=3e-3)

    model = overparametrize_(network(), 3)
    steps = optimizer(model)
    first = train(model, steps, clip=clip)
    assert first[-1] < first[0]
    other = overparametrize_(network(), 3)
    again = optimizer(other)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    again.load_state_dict(copy.deepcopy(steps.state_dict()))
    assert train(model, steps, 5, clip) == train(other, again, 5, clip)
    if clip is not None:
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        assert float(norm) <= clip * 1.01
    x, _ = digits()
    y = model(x)
    torch.testing.assert_close(fold_(model)(x), y, rtol=1e-4, atol=1e-5)


def test_an_optimizer_built_before_is_warned_of_and_changes_nothing() -> None:
    model = network()
    early = torch.optim.Adam(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"built earlier \(Adam\) holds 0.weight.* after overparametrize_"):
        overparametrize_(model, 3)
    before = [part.detach().clone() for parts in factors(model).values() for part in parts]
    train(model, early, 3)
    after = [part for parts in factors(model).values() for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_optimizer_of_something_else_or_of_yesterday_is_not_warned_of() -> None:
    other, model = network(), network()
    kept = torch.optim.SGD(other.parameters(), lr=0.1)
    torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overparametrize_(model, 3)
    assert kept.param_groups


def test_weight_decay_reaches_every_factor_and_fit_trains_them(tmp_path: Path) -> None:
    data = load_data("digits")
    recipe = Recipe(epochs=2, batch_size=64, optimizer="adam", learning_rate=3e-3, weight_decay=1e-3)
    model = overparametrize_(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), 3)
    history = fit(model, data.train, data.validation, recipe, directory=tmp_path)
    assert history.epochs[-1].validation_accuracy > 0.5
    assert is_overparametrized(model)
    saved = torch.load(next(tmp_path.glob("checkpoint-*.pt")), weights_only=True)
    decayed = saved["optimizer"]["param_groups"][0]
    assert decayed["weight_decay"] == recipe.weight_decay
    assert len(decayed["params"]) == 6  # three factors of two weights; the biases are exempt
    fold_(model)
    assert set(model.state_dict()) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_a_loop_of_ones_own_gains_low_rank_with_two_lines() -> None:
    """The same loop with and without: the composed network ends with lower effective rank and the function it had."""
    x, y = digits(256)
    ranks = {}
    for composed in (False, True):
        model = network()
        if composed:
            overparametrize_(model, 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=3e-3)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y % 2).backward()
            optimizer.step()
        before = model(x)
        fold_(model)
        torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)
        values = torch.linalg.svdvals(model[5].weight.detach())
        ranks[composed] = int((values > 0.01 * values[0]).sum())
    assert ranks[True] < ranks[False]


def test_the_recipes_are_values_to_begin_with() -> None:
    assert LORITA.optimizer == "adam"
    assert LORITA.warmup > 0
    assert LORITA_RELAXED.relax is not None
    assert LORITA_RELAXED.weight_decay > LORITA.weight_decay > LORITA_RELAXED.weight_decay * LORITA_RELAXED.relax.factor
    assert PAPER_FCN.learning_rate == 1e-2
    assert PAPER_FCN.warmup == 0


# ---- precision, compilation, processes -------------------------------------------------------------------------------


def test_autocast_trains_float32_factors() -> None:
    model = overparametrize_(network(), 3)
    x, y = digits()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        loss = F.cross_entropy(out, y)
    assert out.dtype == torch.bfloat16
    loss.backward()
    for parts in factors(model).values():
        assert all(part.dtype == torch.float32 and part.grad is not None for part in parts)
        assert all(part.grad.dtype == torch.float32 and part.grad.isfinite().all() for part in parts)
    with torch.autocast("cpu", torch.bfloat16):
        fold_(model)  # in full precision all the same
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(x), overparametrize_(network(), 3)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_compute_and_learn_the_same(backend: str) -> None:
    model = overparametrize_(network(), 3)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x, y = digits(8)
    for net in (compiled, plain):
        F.cross_entropy(net(x), y).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    expected = compiled(x)
    fold_(compiled)
    assert not is_overparametrized(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_compiled_attention() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    overparametrize_(nn.Sequential(attention), 3)
    x = torch.randn(2, 5, 8)
    compiled = torch.compile(attention, backend="eager")
    torch.testing.assert_close(compiled(x, x, x)[0], attention(x, x, x)[0])


def _gradients(rank: int, port: int, path: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(overparametrize_(network(), 3))
    x, y = digits()
    half = slice(32 * rank, 32 * rank + 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x[half]), y[half]).backward()
        optimizer.step()
    if rank == 0:
        torch.save(fold_(model).module.state_dict(), path)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_gradients, (port, str(tmp_path / "weights.pt")), nprocs=2)
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    model = overparametrize_(network(), 3)
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name, value in fold_(model).state_dict().items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)


def test_a_model_that_is_already_distributed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    with pytest.raises(ValueError, match="wrap the model afterwards"):
        overparametrize_(wrapped, 3)
