"""Decompositions: theory's laws in float64, every dtype and shape, and each way in which torch fails."""

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold import linalg
from rankfold.linalg import NonFiniteError, NotConvergedError, NotMaterialisedError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.bool,
]
shapes = st.tuples(st.integers(0, 9), st.integers(0, 9)) | st.tuples(
    st.integers(1, 3), st.integers(0, 6), st.integers(0, 6)
)
seeds = st.integers(0, 2**31)


def draw(shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(torch.float32).to(dtype)


@given(shape=shapes, dtype=st.sampled_from(DTYPES), seed=seeds)
def test_svd_rebuilds_any_matrix(shape, dtype, seed):
    a = draw(shape, seed, dtype)
    u, s, vh = linalg.svd(a)
    k = min(shape[-2:])
    eye = torch.eye(k, dtype=torch.float64).expand(*shape[:-2], k, k)
    assert u.dtype == s.dtype == vh.dtype == torch.float64
    assert s.shape == (*shape[:-2], k)
    torch.testing.assert_close((u * s.unsqueeze(-2)) @ vh, a.to(torch.float32).double())
    torch.testing.assert_close(u.mT @ u, eye)
    torch.testing.assert_close(vh @ vh.mT, eye)
    assert (s.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(linalg.singular_values(a), s)


@given(n=st.integers(0, 9), rank=st.integers(0, 9), groups=st.integers(0, 2), seed=seeds)
def test_eigh_of_a_gram_descends_and_is_never_negative(n, rank, groups, seed):
    x = draw((*([groups] if groups else []), n, rank), seed)
    gram = x @ x.mT
    values, vectors = linalg.eigh(gram)
    assert (values >= 0).all()
    assert (values.diff(dim=-1) <= 0).all()
    torch.testing.assert_close((vectors * values.unsqueeze(-2)) @ vectors.mT, gram)
    torch.testing.assert_close(values[..., :rank], linalg.singular_values(x)[..., :n].square())


def eckart_young(truncate, a, rank):
    """Does `truncate` reach √(Σ_{i>r} σ_i²), below which no matrix of that rank comes?"""
    best = a.double().pow(2).sum().sqrt() if rank == 0 else torch.linalg.svdvals(a)[rank:].square().sum().sqrt()
    return float((a - truncate(a, rank)).norm() - best) < 1e-10


@given(m=st.integers(2, 9), n=st.integers(2, 9), seed=seeds, data=st.data())
def test_truncation_is_eckart_young_optimal(m, n, seed, data):
    a = draw((m, n), seed)
    rank = data.draw(st.integers(0, min(m, n)))

    def truncated(a, rank):
        u, s, vh = linalg.svd(a)
        return (u[:, :rank] * s[:rank]) @ vh[:rank]

    def leading_columns(a, rank):
        q = torch.linalg.qr(a)[0][:, :rank]
        return q @ q.mT @ a

    assert eckart_young(truncated, a, rank)
    # almost surely wrong for every rank in between
    if 0 < rank < min(m, n):
        assert not eckart_young(leading_columns, a, rank)


@given(shape=st.tuples(st.integers(1, 8), st.integers(1, 8)), seed=seeds, size=st.floats(1e-8, 1e2))
def test_weyl_values_move_no_further_than_the_matrix(shape, seed, size):
    a, change = draw(shape, seed), size * draw(shape, seed + 1)
    moved = (linalg.singular_values(a + change) - linalg.singular_values(a)).abs().max()
    assert moved <= torch.linalg.matrix_norm(change, 2) * (1 + 1e-9) + 1e-13


@pytest.mark.parametrize("function", [linalg.svd, linalg.singular_values, linalg.eigh])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_non_finite_is_refused(function, bad, dtype):
    a = torch.eye(4, dtype=dtype)
    a[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"1 of 16 values .*\(4, 4\)"):
        function(a)


@pytest.mark.parametrize("function", [linalg.svd, linalg.singular_values, linalg.eigh])
def test_what_has_no_values_or_is_no_real_matrix_is_refused(function):
    with pytest.raises(NotMaterialisedError, match="on the meta device, without values"):
        function(torch.empty(3, 3, device="meta"))
    with pytest.raises(TypeError, match="complex64"):
        function(torch.eye(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="was expected, got shape"):
        function(torch.zeros(3))
    with pytest.raises(ValueError, match="was expected, got shape"):
        function(torch.zeros(2, 2, 3, 3))


def test_eigh_refuses_what_is_not_square():
    with pytest.raises(ValueError, match="square"):
        linalg.eigh(torch.zeros(2, 3))


def test_gradients_are_left_alone():
    a = torch.ones(3, 2, requires_grad=True)
    assert not any(part.requires_grad for part in linalg.svd(a))
    assert a.requires_grad
    assert a.grad is None


def fails(*args, **kwargs):
    raise torch.linalg.LinAlgError("no convergence")


def fails_in_scipy(*args, **kwargs):
    raise scipy.linalg.LinAlgError("no convergence")


def silent_nan(a, full_matrices=True):
    m, n = a.shape[-2:]
    k = min(m, n)
    return a.new_full((*a.shape[:-1], k), torch.nan), a.new_full((*a.shape[:-2], k), torch.nan), a[..., :k, :]


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (2, 5, 3)])
@pytest.mark.parametrize("driver", [fails, silent_nan])
@pytest.mark.parametrize("scipy_fails", [False, True])
def test_the_next_driver_takes_over(monkeypatch, shape, driver, scipy_fails):
    a = draw(shape, 5, torch.float32)
    rank_two = a[..., :2] @ a[..., :2, :].contiguous() if shape[-2] > 2 else a
    expected = {id(matrix): torch.linalg.svdvals(matrix.double()) for matrix in (a, rank_two)}
    monkeypatch.setattr(torch.linalg, "svd", driver)
    monkeypatch.setattr(torch.linalg, "svdvals", fails)
    if scipy_fails:
        monkeypatch.setattr(scipy.linalg, "svd", fails_in_scipy)
    for matrix in (a, rank_two):
        u, s, vh = linalg.svd(matrix)
        torch.testing.assert_close(s, expected[id(matrix)], atol=1e-6, rtol=1e-7)
        torch.testing.assert_close(linalg.singular_values(matrix), s)
        torch.testing.assert_close((u * s.unsqueeze(-2)) @ vh, matrix.double())
        torch.testing.assert_close(u.mT @ u, torch.eye(s.shape[-1], dtype=torch.float64).expand_as(u.mT @ u))


@pytest.mark.parametrize("scipy_fails", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_next_eigenvalue_driver_takes_over(monkeypatch, scipy_fails, batch):
    x = draw((*batch, 5, 3), 1)
    gram = x @ x.mT
    expected = linalg.eigh(gram)[0]
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    if scipy_fails:
        monkeypatch.setattr(scipy.linalg, "eigh", fails_in_scipy)
    values, vectors = linalg.eigh(gram)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close((vectors * values.unsqueeze(-2)) @ vectors.mT, gram)


def test_when_nothing_converges_the_error_says_so(monkeypatch):
    for name in ("svd", "svdvals", "eigh"):
        monkeypatch.setattr(torch.linalg, name, fails)
    monkeypatch.setattr(scipy.linalg, "svd", fails_in_scipy)
    with pytest.raises(
        NotConvergedError, match=r"the singular value decomposition of a matrix of shape \(4, 3\) did not converge"
    ):
        linalg.singular_values(torch.ones(4, 3))


@given(rows=st.integers(0, 40), width=st.sampled_from([0, 1, 255, 257, 600]), seed=seeds)
def test_gram_is_the_plain_product_and_symmetric(rows, width, seed):
    x = draw((rows, width), seed)
    product = linalg.gram(x)
    torch.testing.assert_close(product, x.mT @ x)
    assert torch.equal(product, product.mT)
    torch.testing.assert_close(linalg.gram(torch.stack([x, 2 * x])), torch.stack([product, 4 * product]))


@pytest.mark.parametrize("shape", [(0, 4, 3), (0, 3, 4), (2, 0, 3), (0, 5), (5, 0)])
def test_of_nothing_shapes_are_as_of_anything(shape):
    *batch, m, n = shape
    u, s, vh = linalg.svd(torch.zeros(shape))
    k = min(m, n)
    assert (u.shape, s.shape, vh.shape) == ((*batch, m, k), (*batch, k), (*batch, k, n))
    assert linalg.singular_values(torch.zeros(shape)).shape == (*batch, k)
