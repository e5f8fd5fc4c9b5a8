"""The identities of the one equation, on random and on ill-conditioned problems."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles import emmet_primal, memit_primal, rome_primal, sum_of_outer_products
from retcon.algebra.delta import LowRankDelta
from retcon.algebra.gram import add_gram, all_finite, mirror
from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import Collision, write_keys
from retcon.errors import CapacityExceeded, InvalidSetting, NotFinite, SingularCovariance

seeds = st.integers(0, 10_000)
ridges = st.sampled_from([1e-3, 1.0, 30.0, 1e4])
conditions = st.sampled_from([1.0, 1e3, 1e6])


def problem(seed: int, n: int, d: int = 24, out: int = 7, condition: float = 1e3):
    """C with a given condition number, and n keys and residuals; float64."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    basis, _ = torch.linalg.qr(draw(d, d))
    spectrum = torch.logspace(0, -torch.tensor(condition).log10().item(), d, dtype=torch.float64)
    C = (basis * spectrum) @ basis.mT
    C = (C + C.mT) / 2
    return C, draw(n, d) @ torch.linalg.cholesky(C).mT, draw(n, out)


def metric(C: torch.Tensor) -> Preservation:
    return Preservation.of(C, jitter=0.0)


def delta(K, R, M, ridge, **more):
    return R.mT @ write_keys(K, M, ridge, **more).rows


def remember(M: Preservation, K: torch.Tensor, ridge: float) -> Preservation:
    """The metric after K was written."""
    return M.remember(write_keys(K, M, ridge).memory, ridge)


def close(got: torch.Tensor, wanted: torch.Tensor, condition: float = 1.0) -> bool:
    return bool((got - wanted).norm() <= 1e-12 * max(condition, 10) * max(wanted.norm(), 1e-3))


@given(seeds, st.integers(1, 12), conditions)
def test_emmet_is_its_primal_and_writes_exactly(seed, n, condition):
    C, K, R = problem(seed, n, condition=condition)
    got = delta(K, R, metric(C), 0.0)
    assert close(got, emmet_primal(C, K, R), condition * 1e3)
    assert close(K @ got.mT, R, condition * 1e3)


@given(seeds, st.integers(1, 12), conditions, ridges)
def test_memit_is_its_primal(seed, n, condition, ridge):
    C, K, R = problem(seed, n, condition=condition)
    # The primal inverts λC + KᵀK, which at a small ridge is the less accurate of the two.
    tolerance = condition * max(1.0, 1 / ridge) * 1e2
    assert close(delta(K, R, metric(C), ridge), memit_primal(C, K, R, ridge), tolerance)


@given(seeds, st.integers(1, 8), ridges, st.sampled_from([1.0, 1e3]))
def test_stabilised_emmet_is_memit(seed, n, alpha, weight):
    C, K, R = problem(seed, n)
    got = delta(K, R, metric(C), alpha * weight)
    assert close(got, emmet_primal(C, K, R, alpha, weight), 1e6)


@given(seeds, conditions)
def test_rome_is_emmet_of_one_and_published_rome_has_two_keys(seed, condition):
    C, K, R = problem(seed, 2, condition=condition)
    key, read = K[:1], K[:1] + 0.1 * K[1:]
    one = delta(key, R[:1], metric(C), 0.0)
    assert close(one, rome_primal(C, key[0], key[0], R[0]), condition * 1e3)
    two = delta(key, R[:1], metric(C), 0.0, read=read)
    assert close(two, rome_primal(C, key[0], read[0], R[0]), condition * 1e3)
    assert close(read @ two.mT, R[:1], condition * 1e3)
    assert not close(two, one, condition)


@given(seeds, st.integers(2, 10), ridges)
def test_memit_is_stationary(seed, n, ridge):
    """The gradient of λ‖ΔW C^½‖² + Σ‖ΔW kᵢ − rᵢ‖² vanishes at the solution."""
    C, K, R = problem(seed, n)
    D = delta(K, R, metric(C), ridge)
    gradient = ridge * D @ C + (K @ D.mT - R).mT @ K
    assert gradient.norm() <= 1e-9 * (R.mT @ K).norm()


@given(seeds, st.integers(1, 8))
def test_limits_of_the_ridge(seed, n):
    C, K, R = problem(seed, n)
    M = metric(C)
    assert close(delta(K, R, M, 1e-9), delta(K, R, M, 0.0), 1e9)
    assert delta(K, R, M, 1e15).norm() < 1e-9 * R.norm()


@given(
    seeds, st.lists(st.integers(1, 5), min_size=2, max_size=4), st.sampled_from([0.0, 1.0, 300.0])
)
def test_carried_batches_with_memory_are_one_batch(seed, sizes, ridge):
    """For fixed keys and values, R = V − WK on the current W; at ρ = 0 and above."""
    C, K, V = problem(seed, sum(sizes))
    order = torch.randperm(len(K), generator=torch.Generator().manual_seed(seed))
    whole = delta(K, V, metric(C), ridge)
    M, W = metric(C), torch.zeros_like(whole)
    for part in order.split(sizes):
        W = W + delta(K[part], V[part] - K[part] @ W.mT, M, ridge)
        M = remember(M, K[part], ridge)
    assert close(W, whole, 1e7)


@given(seeds)
def test_without_memory_carried_batches_are_not_one_batch(seed):
    C, K, V = problem(seed, 8)
    M, W = metric(C), torch.zeros(7, 24, dtype=torch.float64)
    for part in torch.arange(8).split(2):
        W = W + delta(K[part], V[part] - K[part] @ W.mT, M, 1.0)
    assert not close(W, delta(K, V, M, 1.0), 1e9)


@given(seeds, st.integers(1, 6), st.sampled_from([0.0, 1.0, 50.0]))
def test_remembered_metric_is_the_sum(seed, n, ridge):
    """M⁻¹ of the recursion is (C + KᵀK/ρ)⁻¹; at ρ = 0, past keys are out of its range."""
    C, K, _ = problem(seed, n)
    M = remember(metric(C), K, ridge)
    identity = torch.eye(len(C), dtype=torch.float64)
    inverse = M.unwhiten(M.solve(M.whiten(identity)))
    if ridge > 0:
        assert close(inverse, torch.linalg.inv(C + K.mT @ K / ridge), 1e7)
    else:
        assert (K @ inverse).norm() <= 1e-8 * K.norm() * torch.linalg.inv(C).norm()


@given(seeds)
def test_mean_of_the_quadratic_form_is_d_in(seed):
    """E[kᵀC⁻¹k] = d_in over the keys that made C: the natural scale of λ."""
    keys = torch.randn(200, 12, generator=torch.Generator().manual_seed(seed)).double()
    M = metric(keys.mT @ keys / 200)
    assert abs(M.whiten(keys).square().sum(-1).mean().item() - 12) < 1e-8


@given(seeds, st.integers(0, 3), st.integers(4, 6))
def test_collisions_are_named(seed, first, second):
    C, K, _ = problem(seed, 7)
    K[second] = K[first]
    with pytest.raises(Collision) as caught:
        write_keys(K, metric(C), 0.0)
    assert (caught.value.first, caught.value.second) == (first, second)
    assert caught.value.cosine > 0.999999
    assert write_keys(K, metric(C), 1.0).novelty[second] < 1


def test_a_key_that_was_written_before_collides():
    C, K, _ = problem(3, 4)
    M = remember(metric(C), K[:2], 0.0)
    with pytest.raises(Collision) as caught:
        write_keys(K[1:3], M, 0.0)
    assert caught.value.first is None and caught.value.second == 0


def test_similar_keys_do_not_collide():
    C, K, R = problem(4, 4)
    K[3] = K[2] + 1e-3 * K[3]
    written = write_keys(K, metric(C), 0.0)
    assert 0 < written.novelty[3] < 1e-4
    assert close(K @ (R.mT @ written.rows).mT, R, 1e9)


def test_capacity():
    C, K, _ = problem(0, 24)
    M = remember(metric(C), K[:20], 0.0)
    with pytest.raises(CapacityExceeded, match="20 earlier"):
        write_keys(K[:5] + 1, M, 0.0)
    write_keys(K[20:], M, 1.0)


def test_a_factor_may_take_the_memory_of_its_moment():
    C, _, _ = problem(5, 1)
    kept = C.clone()
    M = Preservation.of(C, jitter=1e-6)
    assert torch.equal(C, kept) and M.whitening.factor.data_ptr() != C.data_ptr()
    lean = Preservation.of(C, jitter=1e-6, overwrite=True)
    assert lean.whitening.factor.data_ptr() == C.data_ptr()
    M, lean = M.whitening, lean.whitening
    assert torch.equal(lean.factor, M.factor)
    kept.diagonal().add_(M.jitter)
    assert close(M.factor @ M.factor.mT, kept)


@pytest.mark.parametrize(("block", "width"), [(5, 12), (4, 12), (12, 12), (384, 900)])
def test_half_products_are_the_sum_of_outer_products(monkeypatch, block, width):
    monkeypatch.setattr("retcon.algebra.gram._BLOCK", block)
    keys = torch.randn(40, width, generator=torch.Generator().manual_seed(block))
    total = torch.zeros(width, width, dtype=torch.float64)
    for part in keys.split([13, 1, 26]):
        add_gram(total, part)
    mirror(total)
    assert torch.equal(total, total.mT)
    wanted = sum_of_outer_products(keys)
    assert (total - wanted).abs().max() <= 40 * 2**-24 * wanted.diagonal().max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen(bad):
    values = torch.ones(3, 4)
    assert all_finite(values) and all_finite(values.mT)
    values[2, 1] = bad
    assert not all_finite(values) and not all_finite(values.half())


def test_bad_numbers_are_refused():
    C, K, _ = problem(0, 2)
    with pytest.raises(InvalidSetting):
        write_keys(K, metric(C), -1.0)
    with pytest.raises(NotFinite):
        write_keys(K * float("nan"), metric(C), 1.0)
    with pytest.raises(NotFinite):
        Preservation.of(C * float("inf"))
    with pytest.raises(SingularCovariance, match="jitter"):
        Preservation.of(K.mT @ K, jitter=1e-20)


def test_jitter_makes_a_dead_unit_harmless():
    C, K, R = problem(1, 3)
    C[5], C[:, 5], K[:, 5] = 0, 0, 0
    assert torch.isfinite(delta(K, R, Preservation.of(C), 0.0)).all()


@given(seeds, st.integers(1, 6))
def test_low_rank_delta(seed, n):
    g = torch.Generator().manual_seed(seed)
    change = LowRankDelta(left=torch.randn(n, 5, generator=g), right=torch.randn(n, 8, generator=g))
    assert change.rank == n
    assert abs(change.norm() - change.dense().norm().item()) < 1e-5
    assert torch.equal(change.dense(slice(1, 3)), change.dense()[1:3])
    parts = [change.select([i]) for i in range(n)]
    assert torch.allclose(sum(p.dense() for p in parts), change.dense(), atol=1e-6)
    assert torch.equal(LowRankDelta.stack(parts).dense(), change.dense())
