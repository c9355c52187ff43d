"""Spectrum: theory's laws, naive references, and numbers without NaN where there is nothing."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.linalg import NonFiniteError, NotMaterialisedError
from rankfold.spectrum import Spectrum, spectrum

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 8)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(m=sizes, n=sizes, seed=seeds)
def test_tails_are_the_errors_of_truncation(m, n, seed):
    a = draw(m, n, seed=seed)
    found = spectrum(a)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    for rank in range(min(m, n) + 1):
        error = float((a - (u[:, :rank] * s[:rank]) @ vh[:rank]).norm())
        assert found.tail(rank) == pytest.approx(error, abs=1e-12)
        assert found.relative_tail(rank) == pytest.approx(error / float(a.norm()), abs=1e-12)
    assert found.tails().shape == (min(m, n) + 1,)
    assert found.tail(min(m, n)) == found.tail(99) == 0.0


def tail_is_sound(tail):
    """The tail of 1, 1e-9 after rank 1 is 1e-9, to full precision."""
    values = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    return tail(values, 1) == pytest.approx(1e-9, rel=1e-12)


def test_tails_are_not_found_by_subtraction():
    assert tail_is_sound(lambda values, rank: Spectrum(values, (2, 2)).tail(rank))

    def by_subtraction(values, rank):
        return float((values.square().sum() - values[:rank].square().sum()).clamp_min(0).sqrt())

    assert not tail_is_sound(by_subtraction)


@given(m=sizes, n=sizes, seed=seeds)
def test_norms_and_ranks_against_their_definitions(m, n, seed):
    a = draw(m, n, seed=seed)
    found, s = spectrum(a), torch.linalg.svdvals(a)
    assert found.energy == pytest.approx(float(a.square().sum()))
    assert found.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(a, 2)))
    assert found.nuclear_norm == pytest.approx(float(torch.linalg.matrix_norm(a, "nuc")))
    assert found.schatten(2) == pytest.approx(float(a.norm()))
    assert found.schatten(math.inf) == found.spectral_norm
    assert found.schatten(0.5) == pytest.approx(float(s.sqrt().sum()) ** 2)
    assert found.numerical_rank() == int(torch.linalg.matrix_rank(a))
    assert found.numerical_rank(0.1) == int((s >= 0.1 * s[0]).sum())
    assert found.stable_rank == pytest.approx(float(a.square().sum() / s[0] ** 2))
    p = s / s.sum()
    assert found.effective_rank == pytest.approx(float(torch.exp(-(p * p.log()).sum())))


@given(m=sizes, n=sizes, seed=seeds, rank=st.integers(0, 8))
def test_ranks_are_between_one_and_the_rank(m, n, seed, rank):
    rank = min(m, n, rank)
    found = spectrum(draw(m, rank, seed=seed) @ draw(rank, n, seed=seed + 1))
    assert found.numerical_rank() == rank
    for soft in (found.stable_rank, found.effective_rank):
        assert (1 - 1e-9 if rank else 0) <= soft <= rank + 1e-6


@given(m=sizes, n=sizes, seed=seeds, share=st.floats(0, 1))
def test_rank_for_is_the_smallest_that_suffices(m, n, seed, share):
    found = spectrum(draw(m, n, seed=seed))
    rank = found.rank_for(share)
    kept = [1 - (found.tail(r) / found.tail(0)) ** 2 for r in range(min(m, n) + 1)]
    assert kept[rank] >= share - 1e-12
    assert rank == 0 or kept[rank - 1] <= share + 1e-12
    error = found.tail(0) * (1 - share)
    rank = found.rank_for_error(error)
    assert found.tail(rank) <= error
    assert rank == 0 or found.tail(rank - 1) > error


def test_identity_and_rank_one():
    assert spectrum(torch.eye(7)).stable_rank == pytest.approx(7)
    assert spectrum(torch.eye(7)).effective_rank == pytest.approx(7)
    assert spectrum(torch.eye(7)).rank_for(0.5) == 4
    one = spectrum(torch.ones(4, 6))
    assert (one.numerical_rank(), one.rank_for(1 - 1e-12)) == (1, 1)
    assert one.stable_rank == pytest.approx(1)
    assert one.effective_rank == pytest.approx(1)


def test_exact_fractions_need_no_rank_for_rounding():
    for n in (2, 3, 5, 7, 10, 100):
        found = spectrum(torch.eye(n))
        assert [found.rank_for(rank / n) for rank in range(n + 1)] == list(range(n + 1))
    tail = Spectrum(torch.tensor([1.0, 1e-7], dtype=torch.float64), (2, 2))
    assert tail.rank_for(1.0) == 2  # all of it is all of it
    assert tail.rank_for(1 - 9e-15) == 2


def test_the_paper_s_example_of_soft_ranks_before_and_after_collapse():
    """Stable, thresholded and entropy rank agree on four equal values beside noise, and differ on a slow decay."""
    collapsed = Spectrum(torch.tensor([1.0] * 4 + [1e-4] * 6), (10, 10))
    assert collapsed.numerical_rank(1e-2) == 4
    assert collapsed.stable_rank == pytest.approx(4, abs=0.01)
    assert collapsed.effective_rank == pytest.approx(4, abs=0.05)
    slow = Spectrum(torch.linspace(1, 0.1, 10), (10, 10))
    assert slow.stable_rank < slow.effective_rank < slow.numerical_rank(1e-2)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 4), (3, 4), (2, 3, 4)])
def test_empty_and_zero_matrices_have_numbers(shape):
    found = spectrum(torch.zeros(shape))
    assert found.shape == shape[-2:]
    numbers = [found.energy, found.spectral_norm, found.nuclear_norm, found.stable_rank, found.effective_rank]
    numbers += [found.schatten(0.5), found.schatten(math.inf), found.tail(0), found.tail(2), found.relative_tail(0)]
    assert numbers == [0.0] * len(numbers)
    assert [found.numerical_rank(), found.rank_for(1.0), found.rank_for(0.0), found.rank_for_error(0.0)] == [0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_half_precision_is_measured_in_float64(dtype):
    a = draw(6, 4).to(torch.float32).to(dtype)
    found = spectrum(a)
    assert found.values.dtype == torch.float64
    torch.testing.assert_close(found.values, torch.linalg.svdvals(a.to(torch.float32).double()))


def shared_rank_error(a, found):
    """Are the tails those of all groups together, each at the same rank?"""
    errors = []
    for rank in range(min(a.shape[-2:]) + 1):
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
        errors.append(float((a - (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]).norm()))
    return found.tails().tolist() == pytest.approx(errors, abs=1e-12)


def test_groups_share_a_rank():
    a = draw(3, 4, 5)
    assert shared_rank_error(a, spectrum(a))
    assert spectrum(a).shape == (4, 5)
    joined = torch.linalg.svdvals(a).flatten().sort(descending=True).values[:4]
    assert not shared_rank_error(a, Spectrum(joined, (4, 5)))


def test_unseen_energy_is_part_of_every_error():
    found = Spectrum(torch.tensor([3.0, 2.0]), (5, 4), unseen_energy=1.0)
    assert found.energy == 14.0
    assert found.tails().tolist() == pytest.approx([14**0.5, 5**0.5, 1.0])
    assert found.tail(4) == 1.0
    assert found.stable_rank == pytest.approx(14 / 9)
    assert found.rank_for(0.9) == 2
    with pytest.raises(ValueError, match="compute the complete spectrum"):
        found.rank_for(0.95)
    with pytest.raises(ValueError, match="unseen energy 1"):
        found.rank_for_error(0.5)


@given(m=st.integers(0, 5), n=st.integers(0, 5), seed=seeds, unseen=st.floats(0, 1e300))
def test_json_round_trip_is_exact(m, n, seed, unseen):
    found = Spectrum(spectrum(draw(m, n, seed=seed)).values, (m, n), unseen)
    again = Spectrum.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert again != Spectrum(found.values, (m + 1, n), unseen)


def test_what_is_no_spectrum_is_refused():
    for values in ([1.0, 2.0], [1.0, -1.0], [3.0, 2.0, 1.0], [[1.0]]):
        with pytest.raises(ValueError, match=r"descending|cannot be the spectrum"):
            Spectrum(torch.tensor(values), (2, 5))
    with pytest.raises(ValueError, match="unseen energy"):
        Spectrum(torch.ones(1), (2, 2), -1.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError):
            Spectrum(torch.ones(1), (2, 2), bad)
        with pytest.raises(NonFiniteError):
            Spectrum(torch.tensor([bad]), (2, 2))
        with pytest.raises(NonFiniteError):
            spectrum(torch.full((2, 2), bad))
    with pytest.raises(NotMaterialisedError):
        spectrum(torch.empty(2, 2, device="meta"))
    found = spectrum(torch.eye(3))
    for ask in (lambda: found.tail(-1), lambda: found.schatten(0), lambda: found.rank_for(1.1)):
        with pytest.raises(ValueError, match=r"-1|p of a Schatten|from 0 to 1"):
            ask()
    for error in (-1.0, math.nan):
        with pytest.raises(ValueError, match="at least 0"):
            found.rank_for_error(error)
