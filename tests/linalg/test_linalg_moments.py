"""Streaming moments: against the two-pass sums, with an offset that ruins the one-pass ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.linalg import Moments, NonFiniteError, NotMaterialisedError
from rankfold.linalg.on_data.cross_moments import CrossMoments


def rows(shape, seed, offset=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + offset).to(dtype)


def two_pass(x):
    x = x.double()
    mean = x.mean(-2)
    centred = x - mean.unsqueeze(-2)
    return mean, centred.mT @ centred, x.mT @ x


def streamed(batches):
    moments = Moments(batches[0].shape[-1])
    for batch in batches:
        moments.update(batch)
    return moments


@given(
    size=st.integers(1, 6),
    groups=st.sampled_from([None, 1, 3]),
    cuts=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_any_split_into_batches_gives_the_sums_of_the_whole(size, groups, cuts, dtype, seed):
    batch = () if groups is None else (groups,)
    count = sum(cuts)
    x = rows((*batch, count, size), seed, 3.0, dtype)
    moments = Moments(size, groups)
    for part in x.split(cuts, -2):
        moments.update(part)
    assert moments.count == count
    if count == 0:
        assert not moments.gram.any()
        return
    mean, centred, gram = two_pass(x)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.covariance_sum, centred, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(moments.gram, gram)
    assert torch.equal(moments.gram, moments.gram.mT)


def test_leading_shapes_are_rows():
    x = rows((2, 3, 5, 4), 0)
    torch.testing.assert_close(Moments(4).update(x).gram, Moments(4).update(x.reshape(30, 4)).gram)
    torch.testing.assert_close(Moments(4, 2).update(x).gram, Moments(4, 2).update(x.reshape(2, 15, 4)).gram)
    assert Moments(4).update(torch.ones(4)).count == 1


def centred_exactly(covariance_sum, x):
    return bool((covariance_sum - two_pass(x)[1]).abs().max() < 1e-7 * two_pass(x)[1].abs().max())


def test_a_large_mean_costs_nothing_and_would_cost_the_one_pass_formula_everything():
    x = rows((400, 5), 1, offset=1e7)
    moments = streamed(x.split(37))
    assert centred_exactly(moments.covariance_sum, x)
    one_pass = x.mT @ x - len(x) * torch.outer(x.mean(0), x.mean(0))
    assert not centred_exactly(one_pass, x)


def test_float32_rows_are_accumulated_in_float64():
    """The smallest eigenvalue of an ill-conditioned Gram survives; a float32 sum loses it."""
    mixing = torch.linalg.qr(rows((6, 6), 3))[0]
    x = (rows((3000, 6), 2) * torch.logspace(0, -5, 6, dtype=torch.float64) @ mixing).float()
    smallest = torch.linalg.svdvals(x.double())[-1] ** 2

    def right(gram):
        return bool((torch.linalg.eigvalsh(gram.double())[0] - smallest).abs() < 0.01 * smallest)

    assert right(streamed(x.split(100)).gram)
    assert not right(sum(part.mT @ part for part in x.split(100)))


@given(first=st.integers(0, 9), second=st.integers(0, 9), groups=st.sampled_from([None, 2]), seed=st.integers(0, 2**31))
def test_merge_is_update_with_the_other_rows(first, second, groups, seed):
    batch = () if groups is None else (groups,)
    a, b = rows((*batch, first, 3), seed, 5.0), rows((*batch, second, 3), seed + 1, -5.0)
    merged = Moments(3, groups).update(a).merge(Moments(3, groups).update(b))
    whole = Moments(3, groups).update(torch.cat([a, b], -2))
    assert merged.count == whole.count
    torch.testing.assert_close(merged.covariance_sum, whole.covariance_sum)
    torch.testing.assert_close(merged.gram, whole.gram)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("groups", [None, 2])
def test_state_round_trip_goes_on_where_it_stopped(groups, single, tmp_path):
    batch = () if groups is None else (groups,)
    first, second = (rows((*batch, n, 300), n, far).float() for n, far in ((20, 1.0), (30, -1.0)))
    moments = Moments(300, groups, single=single).update(first)
    torch.save(moments.state_dict(), tmp_path / "moments.pt")
    resumed = Moments.from_state_dict(torch.load(tmp_path / "moments.pt", weights_only=True)).update(second)
    moments.update(second)
    assert resumed.count == moments.count
    assert torch.equal(resumed.gram, moments.gram)
    assert torch.equal(resumed.mean, moments.mean)


def test_states_that_do_not_fit_are_refused():
    state = Moments(3).update(torch.ones(2, 3)).state_dict()
    for wrong in ({"mean": torch.zeros(4)}, {"covariance_sum": torch.zeros(3)}, {"count": -1}):
        with pytest.raises(ValueError, match="not the state of moments"):
            Moments.from_state_dict(state | wrong)


def test_many_blocks_are_one(monkeypatch):
    x = rows((50, 4), 3, 2.0)
    whole = Moments(4).update(x).covariance_sum
    monkeypatch.setattr("rankfold.linalg.on_data.moments._BLOCK_ELEMENTS", 28)
    torch.testing.assert_close(Moments(4).update(x).covariance_sum, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_batch_is_refused_and_changes_nothing(dtype, bad):
    moments = Moments(3).update(torch.ones(4, 3))
    x = torch.ones(5, 3, dtype=dtype)
    x[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"\(5, 3\)"):
        moments.update(x)
    assert moments.count == 4
    assert torch.equal(moments.mean, torch.ones(3, dtype=torch.float64))


def test_float16_sums_do_not_overflow():
    x = torch.full((100, 2), 6e4, dtype=torch.float16)
    assert Moments(2).update(x).gram[0, 0] == 100 * float(x[0, 0]) ** 2
    assert not (x.mT @ x).isfinite().all()


def test_float8_rows_are_taken():
    x = rows((6, 3), 0).to(torch.float32).to(torch.float8_e4m3fn)
    torch.testing.assert_close(Moments(3).update(x).gram, two_pass(x.float())[2])


def test_what_is_no_row_is_refused():
    with pytest.raises(ValueError, match=r"rows of shape \(…, 3\) were expected, got \(2, 4\)"):
        Moments(3).update(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"rows of shape \(2, …, 3\) were expected"):
        Moments(3, 2).update(torch.ones(3, 5, 3))
    with pytest.raises(ValueError, match=r"\(2, …, 3\)"):
        Moments(3, 2).update(torch.ones(3))
    with pytest.raises(NotMaterialisedError):
        Moments(3).update(torch.empty(2, 3, device="meta"))
    with pytest.raises(TypeError, match="complex"):
        Moments(3).update(torch.ones(2, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="do not fit"):
        Moments(3).merge(Moments(3, 1))
    with pytest.raises(ValueError, match="at least"):
        Moments(3, 0)
    with pytest.raises(ValueError, match="calibration data are empty"):
        _ = Moments(3).mean


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_products_in_single_precision_are_as_exact_as_such_rows(offset):
    """Of each entry to 1e-6 of the two deviations, whatever the scales of the columns are."""
    scales = torch.logspace(-3, 3, 12)
    x = (torch.randn(9000, 12) + offset) * scales
    t = x @ torch.randn(12, 7) + torch.randn(9000, 7)
    found, exact = CrossMoments(12, 7, single=True), CrossMoments(12, 7)
    for rows, targets in zip(x.split(5000), t.split(5000), strict=True):
        found.update(rows, targets)
        exact.update(rows, targets)
    spread, aims = exact.gram.diagonal().sqrt(), exact.energy.sqrt()
    assert float(((found.gram - exact.gram) / spread / spread[:, None]).abs().max()) < 2e-6
    assert float(((found.cross - exact.cross) / spread[:, None] / aims).abs().max()) < 2e-6
    torch.testing.assert_close(found.energy, exact.energy, rtol=2e-6, atol=0)
    wide = CrossMoments(12, 7, single=True).update(x.double(), t.double())  # these are left as they are
    assert torch.equal(wide.gram, CrossMoments(12, 7).update(x.double(), t.double()).gram)


def test_the_average_is_that_of_all_rows_seen_so_far():
    x = torch.randn(60, 5, dtype=torch.float64)
    found = Moments(5)
    for stop in (20, 60):
        found.update(x[:20] if stop == 20 else x[20:])
        torch.testing.assert_close(found.average, x[:stop].T.cov(correction=0))
        assert found.average is found.average
    other = Moments(5).update(x[:20])
    assert other.average.shape == (5, 5)
    torch.testing.assert_close(other.merge(Moments(5).update(x[20:])).average, found.average)
