"""The ``weight`` of a factored layer, for code written for the dense one: layer kinds × dtypes × ways of reading.

The stranger's code is torch's own: the forward of the dense layer, given the factored layer's weight.
"""

import copy
import functools
import io
import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import DTYPES, PLAIN, Case
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from rankfold.layers import FactoredWeight, FactoredWriteError, LowRankLinear, weight_of
from rankfold.layers.weights.joined import Joined
from rankfold.layers.weights.matrices import Matrix, PivotedMatrix
from rankfold.sites import Form, setting_of, sites

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
KINDS = [
    (case, form) for case in PLAIN for form in sorted(sites(case.model())[0].forms - {Form.KEEP, Form.DENSE})
]  # fmt: skip


def pair_of(case: Case, form: Form, dtype: torch.dtype = torch.float64, rank: int = 2) -> tuple[nn.Module, nn.Module]:
    """The dense layer and a factored one in its place, with random factors that are no approximation of it."""
    dense = case.model(dtype)[0]
    site = sites(case.model())[0]
    new = site.layer.skeleton(dense, form, rank, site.layer.has_bias)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in new.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * fan**-0.5)
    return dense, new


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def stranger(dense: nn.Module, weight, bias, x):
    """The dense layer's own forward with another weight."""
    return functional_call(dense, {"weight": weight} | ({} if bias is None else {"bias": bias}), (x,))


def near(a, b, dtype) -> None:
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape
    assert float((a - b).norm()) <= TOLERANCE[dtype] * max(float(b.norm()), 1e-12)


# ---- the laws --------------------------------------------------------------------------------------------------------


def law_of_looking(dense, new) -> None:
    """Everything that can be asked without values is that of the dense layer, and costs nothing."""
    seen = {}

    def look():
        for who in (dense, new):
            w = who.weight
            seen[who] = (
                w.dtype, w.device, w.shape, w.size(), w.size(0), w.dim(), w.ndim, w.numel(), len(w), w.requires_grad,
                w.is_floating_point(), w.element_size(), w.nbytes, w.stride(), w.is_contiguous(), w.is_cuda, w.layout,
                w.T.shape if w.dim() == 2 else None, isinstance(w, nn.Parameter),
                torch.zeros_like(w).shape, w.new_zeros(3).dtype, torch.zeros(2).to(w).dtype,
            )  # fmt: skip

    assert flops(look) == 0
    assert seen[dense] == seen[new]


def law_of_reading(dense, new, x, dtype) -> None:
    """The stranger's forward computes what the layer computes, at the layer's cost, with its gradients."""
    expected = new(x)
    near(stranger(dense, new.weight, new.bias, x), expected, dtype)
    cost = flops(lambda: stranger(dense, new.weight, new.bias, x))
    if getattr(dense, "padding_mode", "zeros") == "zeros":
        assert cost == flops(lambda: new(x))
    else:  # it pads before it reads, so that stages see the border too that they never see otherwise
        assert flops(lambda: new(x)) <= cost < flops(lambda: stranger(dense, new.weight.clone(), new.bias, x))
    by_call = gradients(new, lambda: new(x), x)
    for a, b in zip(gradients(new, lambda: stranger(dense, new.weight, new.bias, x), x), by_call, strict=True):
        near(a, b, dtype)


def law_of_the_product(dense, new, x, dtype) -> None:
    """Multiplied out it is an ordinary tensor: the same function, the same gradients."""
    whole = new.weight.clone()
    assert type(whole) is torch.Tensor
    near(stranger(dense, whole, new.bias, x), new(x), dtype)
    by_call = gradients(new, lambda: new(x), x)
    for a, b in zip(gradients(new, lambda: stranger(dense, new.weight.clone(), new.bias, x), x), by_call, strict=True):
        near(a, b, dtype)


def gradients(new, run, x):
    """By every parameter and the input, of a loss with every output in it."""
    x.requires_grad_(True)
    found = torch.autograd.grad(run().double().square().sum(), [*new.parameters(), x])
    x.requires_grad_(False)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "form"), KINDS, ids=str)
def test_strangers_read_a_factored_layer_as_the_dense_one(case: Case, form: Form, dtype: torch.dtype):
    dense, new = pair_of(case, form, dtype)
    law_of_looking(dense, new)
    if not (dtype in (torch.float16, torch.bfloat16) and "conv3d" in case.name):  # no such kernel in torch
        x = case.inputs(dtype)
        law_of_reading(dense, new, x, dtype)
        law_of_the_product(dense, new, x, dtype)


SETTINGS = ("in_channels", "out_channels", "groups", "transposed", "padding_mode", "kernel_size")


@pytest.mark.parametrize(("case", "form"), KINDS, ids=str)
def test_attributes_are_those_of_the_dense_layer(case: Case, form: Form):
    dense, new = pair_of(case, form)
    if new.weight.dim() == 2:
        names = ("nx", "nf") if case.name.startswith("hf") else ("in_features", "out_features")
        assert [getattr(new, name) for name in names] == [getattr(dense, name) for name in names]
        return
    for name in SETTINGS:
        assert getattr(new, name) == getattr(dense, name), name
    given = setting_of(dense)
    for name in ("stride", "padding", "dilation", "output_padding"):
        assert getattr(new, name) == getattr(given, name), name


# ---- the laws reject wrong implementations ---------------------------------------------------------------------------

LINEAR = next(c for c in PLAIN if c.name == "linear-sequence")


def rule_with(**changed):
    return type("Wrong", (Matrix,), changed)()


class Layer(LowRankLinear):
    rule = Matrix()

    @property
    def weight(self):
        return weight_of(self.rule, (self.down.weight, self.up.weight))


class MultipliedOut(LowRankLinear):
    """As in the first release."""

    @property
    def weight(self):
        return self.up.weight @ self.down.weight


class Detached(Layer):
    @property
    def weight(self):
        return weight_of(self.rule, (self.down.weight.detach(), self.up.weight.detach()))


def wrong(kind, rule=None):
    dense, good = pair_of(LINEAR, Form.FACTORED)
    new = kind(good.in_features, good.rank, good.out_features, dtype=torch.float64)
    new.load_state_dict(good.state_dict())
    if rule is not None:
        new.rule = rule
    return dense, new, LINEAR.inputs(), torch.float64


def test_the_laws_reject_wrong_weights():
    transposed = rule_with(shape=lambda self, factors: (factors[0].shape[1], factors[1].shape[0]))
    thick = rule_with(thin=lambda self, func, args, kwargs, weight: None)
    scaled = rule_with(dense=lambda self, factors: 1.001 * Matrix.dense(self, factors))
    law_of_looking(*wrong(Layer)[:2])
    law_of_reading(*wrong(Layer))
    law_of_the_product(*wrong(Layer))
    for law, given in (
        (law_of_looking, wrong(MultipliedOut)[:2]),
        (law_of_looking, wrong(Layer, transposed)[:2]),
        (law_of_reading, wrong(MultipliedOut)),
        (law_of_reading, wrong(Layer, thick)),
        (law_of_the_product, wrong(Layer, scaled)),
    ):
        with pytest.raises(AssertionError):
            law(*given)
    for law in (law_of_reading, law_of_the_product):
        with pytest.raises(RuntimeError, match=r"not.*used"):
            law(*wrong(Detached))


# ---- ways of multiplying ---------------------------------------------------------------------------------------------

X = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
THIN = {
    "linear": lambda w: F.linear(X, w),
    "linear by name": lambda w: F.linear(input=X, weight=w),
    "@ T": lambda w: X @ w.T,
    "mm t": lambda w: torch.mm(X, w.t()),
    "matmul transpose": lambda w: X.matmul(w.transpose(-1, 0)),
    "batch @ mT": lambda w: X.reshape(7, 1, 6) @ w.mT,
    "from the left": lambda w: w @ X.T,
    "batch from the left": lambda w: w @ X.unsqueeze(-1),
    "addmm": lambda w: torch.addmm(torch.ones(5, dtype=X.dtype), X, w.T),
    "twice turned": lambda w: F.linear(X, w.T.T),
    "cast": lambda w: F.linear(X.float(), w.to(torch.float32)),
    "cast by type": lambda w: F.linear(X.float(), w.type(torch.float32)),
    "cast as the input": lambda w: F.linear(X, w.to(X.dtype).contiguous()),
}
PRODUCT = {
    "detached": lambda w: F.linear(X, w.detach()),
    "data": lambda w: F.linear(X, w.data),
    "einsum": lambda w: torch.einsum("bi,oi->bo", X, w),
    "norm": lambda w: w.norm(),
    "times": lambda w: 2 * w,
    "rows": lambda w: F.linear(X, w[:3]),
    "each row": lambda w: torch.stack([row.sum() for row in w]),
    "flat": lambda w: w.view(-1).cumsum(0),
    "embedding": lambda w: F.embedding(torch.tensor([1, 2]), w),
    "numpy": lambda w: torch.tensor(w.detach().numpy().tolist()),
    "type by name": lambda w: F.linear(X, w.type("torch.FloatTensor").type(w.type())),
    "svd": lambda w: torch.linalg.svdvals(w),
    "gram": lambda w: w @ w.T,
}


@pytest.mark.parametrize("read", [*THIN, *PRODUCT])
def test_every_read_is_that_of_the_product(read: str):
    layer = LowRankLinear(6, 2, 5, dtype=torch.float64)
    whole = (layer.up.weight @ layer.down.weight).detach()
    run = (THIN | PRODUCT)[read]
    torch.testing.assert_close(run(layer.weight), run(whole), rtol=1e-5, atol=1e-5, check_dtype=False)
    if read in THIN:
        assert flops(lambda: run(layer.weight)) == 2 * 7 * 2 * (5 + 6)


ones = functools.partial(torch.ones, dtype=X.dtype)
MISFIT = {
    "linear": lambda w: F.linear(ones(2, 9), w),
    "linear of the turned": lambda w: F.linear(ones(2, 100), w.T),
    "linear with a wrong bias": lambda w: F.linear(X, w, ones(3)),
    "linear of a number": lambda w: F.linear(ones(()), w),
    "mm": lambda w: torch.mm(X, w),
    "mm of three axes": lambda w: torch.mm(ones(2, 3, 5), w),
    "mm of one axis": lambda w: torch.mm(w, ones(6)),
    "mv": lambda w: torch.mv(w, ones(9)),
    "mv of a matrix": lambda w: torch.mv(w, ones(6, 2)),
    "mv by the weight": lambda w: torch.mv(ones(5), w),
    "vector from the left": lambda w: ones(9) @ w,
    "turned, vector": lambda w: w.T @ ones(9),
    "matrix from the right": lambda w: w @ ones(9, 3),
    "matmul of a number": lambda w: torch.matmul(ones(()), w),
    "addmm": lambda w: torch.addmm(ones(6), ones(3, 9), w),
    "addmm of three axes": lambda w: torch.addmm(ones(6), ones(2, 3, 5), w),
    "addmm to three axes": lambda w: torch.addmm(ones(2, 3, 6), ones(3, 5), w),
}


def weights_of_two_forms():
    order = torch.tensor([3, 0, 4, 1, 2])
    rows, rest = torch.randn(2, 6, dtype=X.dtype), torch.randn(3, 2, dtype=X.dtype)
    left = torch.cat([torch.eye(2, dtype=X.dtype), rest])[order]
    pairs = (Matrix(), (rows, left)), (PivotedMatrix(order), (rows, rest))
    return [(weight_of(*pair), left @ rows) for pair in pairs]


@pytest.mark.parametrize("read", MISFIT)
def test_what_torch_refuses_of_the_product_it_refuses_of_the_factors(read: str):
    for weight, whole in [*weights_of_two_forms(), (weight_of(Joined(), (WHOLE[:2], WHOLE[2:])), WHOLE)]:
        with pytest.raises(RuntimeError) as wanted:
            MISFIT[read](whole)
        with pytest.raises(RuntimeError) as found:
            MISFIT[read](weight)
        assert str(found.value) == str(wanted.value)


WHOLE = torch.randn(5, 6, dtype=X.dtype)


@pytest.mark.parametrize("bias", [(1,), (5,), (7, 5)])
def test_every_bias_that_torch_takes_is_added(bias):
    for weight, whole in weights_of_two_forms():
        torch.testing.assert_close(F.linear(X, weight, 2 * ones(bias)), F.linear(X, whole, 2 * ones(bias)))


class Fused(torch.autograd.Function):
    """Somebody's function with gradients of its own."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.t() @ x


def test_gradients_reach_the_factors_through_functions_with_their_own_backward():
    layer = LowRankLinear(6, 2, 5, bias=False, dtype=torch.float64)
    expected = torch.autograd.grad(layer(X).square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(Fused.apply(X, layer.weight).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected)


def test_second_derivatives_by_the_product():
    layer = LowRankLinear(3, 2, 4, bias=False, dtype=torch.float64)
    factors = [p.detach().requires_grad_() for p in (layer.down.weight, layer.up.weight)]
    x = X[:, :3]
    assert torch.autograd.gradgradcheck(lambda *f: Fused.apply(x, weight_of(Matrix(), f)).square(), factors)


def test_requires_grad_is_that_of_the_factors():
    layer = LowRankLinear(6, 2, 5)
    layer.weight.requires_grad = False
    assert [p.requires_grad for p in layer.parameters()] == [False, False, True]
    assert not layer.weight.requires_grad
    assert layer.weight.requires_grad_(True).requires_grad
    with torch.no_grad():
        assert layer.weight.requires_grad
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("case", "form"), KINDS, ids=str)
def test_freezing_the_weight_freezes_the_parameters_that_it_is_made_of(case: Case, form: Form, mode):
    new = pair_of(case, form)[1]
    factors = [p for name, p in new.named_parameters() if not name.endswith("bias")]
    with mode():
        for wanted in (False, True):
            new.weight.requires_grad_(wanted)
            assert [p.requires_grad for p in factors] == [wanted] * len(factors)
            assert new.weight.requires_grad is wanted


@pytest.mark.parametrize(("case", "form"), KINDS, ids=str)
def test_the_product_lies_in_memory_as_the_weight_tells(case: Case, form: Form):
    weight = pair_of(case, form)[1].weight
    assert weight.is_contiguous()
    assert torch.equal(weight.detach().view(-1), weight.detach().flatten())


def test_a_gradient_that_is_gathered_elsewhere_is_told():
    layer = LowRankLinear(6, 2, 5)
    assert layer.weight.grad is None
    layer(torch.ones(1, 6)).sum().backward()
    with pytest.warns(UserWarning, match=r"gathers no gradient.*layer\.down\.weight\.grad"):
        assert layer.weight.grad is None


def test_the_memory_of_the_factors_is_shared_with_processes():
    layer = LowRankLinear(6, 2, 5)
    assert not layer.weight.is_shared()
    assert layer.weight.share_memory_().is_shared()
    assert layer.down.weight.is_shared()
    assert layer.up.weight.is_shared()


def test_weights_of_the_dense_layer_are_not_passed_over_in_silence():
    model = nn.Sequential(LowRankLinear(6, 2, 5))
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=r"0\.weight is the weight of a dense layer.*not loaded"):
        model.load_state_dict(nn.Sequential(nn.Linear(6, 5)).state_dict(), strict=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_factor_may_be_factored_itself():
    layer = LowRankLinear(6, 3, 5, dtype=torch.float64)
    layer.down = LowRankLinear(6, 2, 3, bias=False, dtype=torch.float64)
    whole = layer.up.weight @ layer.down.up.weight @ layer.down.down.weight
    torch.testing.assert_close(F.linear(X, layer.weight, layer.bias), layer(X))
    torch.testing.assert_close(layer.weight.clone(), whole)
    assert flops(lambda: F.linear(X, layer.weight)) == flops(lambda: layer(X))


# ---- writing ---------------------------------------------------------------------------------------------------------


def _data_plus(layer, value):
    layer.weight.data += value


def _data_is(layer, value):
    layer.weight.data = value


def _item(layer, value):
    layer.weight[0] = 1


def _grad(layer, value):
    layer.weight.grad = value


def _times(layer, value):
    w = layer.weight
    w *= 2


def _assign(layer, value):
    layer.weight = nn.Parameter(value)


WRITES = {
    "data +=": _data_plus,  # as PEFT merges
    "data =": _data_is,
    "[0] =": _item,
    "*=": _times,
    "grad =": _grad,
    "weight =": _assign,
    "register": lambda layer, value: layer.register_parameter("weight", nn.Parameter(value)),
    "data.copy_": lambda layer, value: layer.weight.data.copy_(value),
    "detach().add_": lambda layer, value: layer.weight.detach().add_(1),
    "T.mul_": lambda layer, value: layer.weight.T.mul_(2),
    "a view": lambda layer, value: layer.weight.data.view(-1)[:3].zero_(),
    "a row": lambda layer, value: next(iter(layer.weight.data)).zero_(),
    "a chunk": lambda layer, value: layer.weight.detach().chunk(2)[1].fill_(0),
    "zeros_": lambda layer, value: nn.init.zeros_(layer.weight),
    "xavier": lambda layer, value: nn.init.xavier_uniform_(layer.weight),
    "kaiming": lambda layer, value: nn.init.kaiming_normal_(layer.weight),
    "orthogonal": lambda layer, value: nn.init.orthogonal_(layer.weight),
    "out=": lambda layer, value: torch.mul(value, 2, out=layer.weight),
    "inplace=": lambda layer, value: F.relu(layer.weight, inplace=True),
    "foreach": lambda layer, value: torch._foreach_mul_([layer.weight], 2.0),
    "set_": lambda layer, value: layer.weight.set_(value),
    "hook": lambda layer, value: layer.weight.register_hook(print),
    "data.set_": lambda layer, value: layer.weight.data.set_(value),
    "swap_tensors": lambda layer, value: torch.utils.swap_tensors(layer.weight, nn.Parameter(value)),
    "swap_tensors the other way": lambda layer, value: torch.utils.swap_tensors(nn.Parameter(value), layer.weight),
    "prune": lambda layer, value: prune.l1_unstructured(layer, "weight", 2),
    "del": lambda layer, value: delattr(layer, "weight"),
}


@pytest.mark.parametrize("write", WRITES)
def test_writing_is_refused_in_one_line_with_the_remedy(write: str):
    layer = LowRankLinear(6, 2, 5)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad(), pytest.raises((FactoredWriteError, AttributeError), match=r"layer\.down\.weight") as refused:
        WRITES[write](layer, torch.ones(5, 6))
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    plain = nn.Linear(6, 5)
    with torch.no_grad():
        WRITES[write](plain, torch.ones(5, 6))  # what was refused is possible with the dense layer


@pytest.fixture
def alone(tmp_path):
    """A team of one process, which collectives need."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/team", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


INTO = {
    "broadcast": lambda weight, value: dist.broadcast(weight, 0),
    "all_reduce": lambda weight, value: dist.all_reduce(weight),
    "reduce": lambda weight, value: dist.reduce(weight, 0),
    "scatter": lambda weight, value: dist.scatter(weight, [value]),
    "reduce_scatter": lambda weight, value: dist.reduce_scatter(weight, [value]),
    "all_gather_into_tensor": lambda weight, value: dist.all_gather_into_tensor(weight, value),
    "all_to_all_single": lambda weight, value: dist.all_to_all_single(weight, value),
}


WHERE = {"weight": lambda w: w, "data": lambda w: w.data, "view": lambda w: w.detach()[:]}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of newer names for some
@pytest.mark.parametrize("write", INTO)
@pytest.mark.parametrize("where", WHERE)
def test_collectives_that_write_are_refused(write, where, alone):
    layer = LowRankLinear(6, 2, 5)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad(), pytest.raises(FactoredWriteError, match=r"layer\.down\.weight"):
        INTO[write](WHERE[where](layer.weight), torch.ones(5, 6))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    with torch.no_grad():
        INTO[write](nn.Linear(6, 5).weight.data, torch.ones(5, 6))


def test_collectives_that_read_the_weight_get_the_product(alone):
    layer, into = LowRankLinear(6, 2, 5), [torch.zeros(5, 6)]
    with torch.no_grad():
        dist.all_gather(into, layer.weight.data)
        torch.testing.assert_close(into[0], layer.up.weight @ layer.down.weight)
        dist.all_gather(into, 2 * layer.weight)
        torch.testing.assert_close(into[0], 2 * layer.up.weight @ layer.down.weight)


def test_numpy_sees_an_array_that_cannot_be_written_to():
    layer = LowRankLinear(6, 2, 5)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.detach().numpy()[0] = 1


def test_no_tensor_takes_the_memory_that_is_not_there():
    layer = nn.Linear(6, 5)
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        layer.weight.data = LowRankLinear(6, 2, 5).weight


def test_there_is_no_memory_to_take():
    with pytest.raises(RuntimeError, match=r"no memory of its own.*clone"):
        LowRankLinear(6, 2, 5).weight.data_ptr()


def test_reading_into_another_tensor_is_no_write():
    layer, into = LowRankLinear(6, 2, 5), torch.zeros(5, 6)
    with torch.no_grad():
        into.copy_(layer.weight).add_(layer.weight)
    whole = (layer.up.weight @ layer.down.weight).detach()
    torch.testing.assert_close(into, 2 * whole)
    for given in (layer.weight.data, layer.weight.detach(), layer.weight.detach()[:], layer.weight.clone().detach()):
        other = nn.Linear(6, 5)
        other.weight.data = given
        assert torch.equal(other.weight, whole)
        other.weight.data.zero_()  # which is memory of its own
        assert torch.equal(layer.weight.detach(), whole)


def test_the_bias_is_a_parameter_like_any_other():
    layer = LowRankLinear(6, 2, 5)
    layer.bias.data.zero_()
    assert not layer.up.bias.any()
    layer.bias = nn.Parameter(torch.ones(5))
    assert layer.bias is layer.up.bias
    assert [name for name, _ in layer.named_parameters()] == ["down.weight", "up.weight", "up.bias"]
    layer.bias = None
    assert layer.up.bias is None


# ---- compilers, exporters, copies ------------------------------------------------------------------------------------


class Reads(nn.Module):
    """Calls its layer, and reads its weight, as torch's own forward does."""

    def __init__(self, layer, transposed: bool = False) -> None:
        super().__init__()
        self.layer, self.transposed = layer, transposed

    def forward(self, x):
        return self.layer(x) + F.linear(x, self.layer.weight, self.layer.bias).to(self.layer.weight.dtype)


class Shows(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.weight, self.layer.bias


COMPILED = [("linear-sequence", Form.FACTORED), ("conv2d", Form.FACTORED), ("conv2d", Form.SPATIAL)]
COMPILED += [("conv2d", Form.TUCKER), ("conv2d", Form.CP), ("conv2d-groups", Form.FACTORED)]
COMPILED += [("transpose2d-groups", Form.FACTORED), ("conv1d", Form.CP), ("conv3d", Form.TUCKER)]


@pytest.fixture(params=COMPILED, ids=str)
def whole(request):
    """A model of one factored layer, which it also reads where the layer is linear, and an input."""
    name, form = request.param
    case = next(c for c in PLAIN if c.name == name)
    _, new = pair_of(case, form, torch.float32)
    return (Reads(new) if new.weight.dim() == 2 else nn.Sequential(new)).eval(), case.inputs(torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(whole):
    model, x = whole
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    for found in (torch.jit.load(file), torch.jit.trace(model, (x,)), torch.jit.script(model)):
        torch.testing.assert_close(found(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_code_reads_the_weight(whole):
    model, _ = whole
    layer = model.layer if isinstance(model, Reads) else model[0]
    torch.testing.assert_close(torch.jit.script(Shows(layer))(), (layer.weight.clone(), layer.bias))


def test_torch_export_keeps_thin_products(whole):
    model, x = whole
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x))
    assert flops(lambda: program.module()(x)) == flops(lambda: model(x))


def test_torch_compile(whole):
    model, x = whole
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    found = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected)
    torch.compiler.reset()


def test_copies_and_functional_calls(whole):
    model, x = whole
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.testing.assert_close(functional_call(model, state, (x,)), model(x))
    jacobian = torch.func.jacrev(lambda p: functional_call(model, p, (x,)).sum())(state)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    torch.testing.assert_close([jacobian[name] for name, _ in model.named_parameters()], list(expected))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert set(torch.load(file)) == set(model.state_dict())


def test_copies_of_the_weight_itself_are_ordinary_tensors():
    layer = LowRankLinear(6, 2, 5)
    file = io.BytesIO()
    torch.save(layer.weight, file)
    file.seek(0)
    whole = (layer.up.weight @ layer.down.weight).detach()
    for found in (copy.deepcopy(layer.weight), torch.load(file, weights_only=True)):
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found.detach(), whole)
    assert isinstance(layer.weight, FactoredWeight)


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_a_transformer_layer_with_factored_parts(mode: str):
    """Its fast path would hand every weight to one kernel; torch leaves it for tensors of other classes."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0).eval()
    layer.linear1 = LowRankLinear(8, 3, 12)
    layer.linear2 = LowRankLinear(12, 3, 8)
    twin = copy.deepcopy(layer)
    for name in ("linear1", "linear2"):
        part = getattr(layer, name)
        dense = nn.Linear(part.in_features, part.out_features)
        dense.load_state_dict({"weight": part.weight.detach().clone(), "bias": part.bias.detach()})
        setattr(twin, name, dense)
    x = torch.randn(2, 5, 8)
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    with context():
        torch.testing.assert_close(layer(x), twin(x))
        assert math.isfinite(float(layer.linear1.weight.detach().sum()))


def test_onnx_keeps_thin_products(tmp_path):
    pytest.importorskip("onnxruntime")
    import onnx

    from rankfold.export import to_onnx

    model = Reads(pair_of(LINEAR, Form.FACTORED, torch.float32)[1]).eval()
    assert to_onnx(model, LINEAR.inputs(torch.float32), tmp_path / "model.onnx") < 1e-5
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node]
    assert sum(kind in ("MatMul", "Gemm") for kind in kinds) == 2  # call and read are the same two products


def _trained_by_two(rank: int, file: str, found) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = Reads(pair_of(LINEAR, Form.FACTORED, torch.float32)[1])
    shared = nn.parallel.DistributedDataParallel(model)
    x = LINEAR.inputs(torch.float32).repeat(2, 1, 1)
    shared(x[rank * 3 : rank * 3 + 3]).square().mean().backward()
    found[rank] = [p.grad.tolist() for p in model.parameters()]
    torch.distributed.destroy_process_group()


def test_two_processes_share_gradients_of_read_weights(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(_trained_by_two, (str(tmp_path / "meet"), found), nprocs=2)
        first, second = found[0], found[1]
    assert first == second
    model = Reads(pair_of(LINEAR, Form.FACTORED, torch.float32)[1])
    model(LINEAR.inputs(torch.float32)).square().mean().backward()
    for p, shared in zip(model.parameters(), first, strict=True):
        torch.testing.assert_close(p.grad, torch.tensor(shared), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", [Form.FACTORED, Form.PIVOTED])
def test_under_autocast_a_read_weight_gives_the_precision_of_the_dense_one(form):
    for dense, x in ((nn.Linear(12, 16), torch.randn(3, 12)), (nn.Conv2d(4, 16, 3), torch.randn(2, 4, 5, 5))):
        layer = sites(nn.Sequential(dense))[0].layer
        new = layer.skeleton(dense, form, 3, True)
        calls = [lambda weight: stranger(dense, weight, dense.bias, x)]  # noqa: B023  # called within the loop
        if isinstance(dense, nn.Linear):
            calls += [
                lambda weight: torch.addmm(torch.randn(12), torch.randn(3, 16), weight),
                lambda weight: torch.addmm(torch.randn(16), x, weight.t()),  # noqa: B023
            ]
        for call in calls:
            with torch.autocast("cpu", torch.bfloat16):
                assert call(new.weight).dtype == call(dense.weight).dtype == torch.bfloat16
            assert call(new.weight).dtype == torch.float32
