"""Carried edits: whatever is done to the steps, the weights are those of one joint solve."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles import joint_solution
from retcon.algebra.cumulative import Cumulative
from retcon.algebra.feedback import compressed, largest, rounded, with_feedback
from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import write_keys
from retcon.algebra.whitening import Projection, Root
from retcon.errors import InvalidSetting
from test_identities import close, problem, remember

seeds = st.integers(0, 10_000)
sizes = st.lists(st.integers(1, 6), min_size=2, max_size=8)
ridges = st.sampled_from([0.5, 30.0, 1e3])


def batches(seed: int, sizes: list[int]):
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    return order.split(sizes)


def fold(K, V, M, ridge, parts, W=None):
    """The recursion: what is solved on the weights as they are, with everything remembered."""
    W = torch.zeros(V.shape[1], K.shape[1], dtype=K.dtype) if W is None else W
    for part in parts:
        written = write_keys(K[part], M, ridge)
        W = W + (V[part] - K[part] @ W.mT).mT @ written.rows
        M = M.remember(written.memory, ridge)
    return W, M


@given(seeds, sizes, ridges)
def test_absorbed_and_factored_memory_are_one(seed, sizes, ridge):
    """More facts than an eighth of the width: coordinates absorb them, and nothing changes."""
    C, K, V = problem(seed, sum(sizes))
    got, M = fold(K, V, Preservation.of(C, jitter=0.0), ridge, batches(seed, sizes))
    assert isinstance(M.whitening, Root) == (M.count > 3) and M.count == len(K)
    assert close(got, joint_solution(C, K, V, ridge), 1e7)


@given(seeds)
def test_hard_constraints_stay_hard(seed):
    C, K, V = problem(seed, 22)
    W, M = fold(K, V, Preservation.of(C, jitter=0.0), 0.0, torch.arange(22).split(3))
    assert not isinstance(M.whitening, Root) and close(K @ W.mT, V, 1e8)


@given(seeds, sizes, ridges)
def test_the_three_forms_agree(seed, sizes, ridge):
    """The recursion, the cumulative form, and a step around any editor with W k = v (SimIE)."""
    C, K, V = problem(seed, sum(sizes))
    M = Preservation.of(C, jitter=0.0)
    recursive, _ = fold(K, V, M, ridge, batches(seed, sizes))
    total = Cumulative.over(M.whitening, torch.zeros_like(recursive))
    wrapped, memory = torch.zeros_like(recursive), M
    for part in batches(seed, sizes):
        total = total.add(K[part], V[part])
        edited = wrapped + (V[part] - K[part] @ wrapped.mT).mT @ torch.linalg.pinv(K[part]).mT
        memory = remember(memory, K[part], ridge)
        solved = memory.unwhiten(memory.solve(memory.whiten(K[part]))) / ridge
        wrapped = wrapped + (edited - wrapped) @ K[part].mT @ solved
    assert close(total.solve(ridge).total, recursive, 1e7)
    assert close(wrapped, recursive, 1e7)


@given(seeds, sizes, st.lists(ridges, min_size=8, max_size=8))
def test_a_ridge_that_changes_is_that_of_the_last_solve(seed, sizes, changing):
    C, K, V = problem(seed, sum(sizes))
    total = Cumulative.over(Preservation.of(C, jitter=0.0).whitening, V.mT @ K * 0)
    for part, ridge in zip(batches(seed, sizes), changing, strict=False):
        total = total.add(K[part], V[part])
        _ = total.solve(ridge)
    assert close(total.solve(77.0).total, joint_solution(C, K, V, 77.0), 1e7)
    change = total.solve(77.0)
    assert abs(change.energy - (change.total @ C * change.total).sum()) < 1e-9 * change.energy
    with pytest.raises(InvalidSetting, match="ridge > 0"):
        total.solve(0.0)


@given(seeds, st.integers(1, 5), ridges)
def test_a_deleted_fact_was_never_added(seed, gone, ridge):
    """Out of the sums."""
    C, K, V = problem(seed, 16)
    M = Preservation.of(C, jitter=0.0)
    wanted = joint_solution(C, K[gone:], V[gone:], ridge)
    total = Cumulative.over(M.whitening, V.mT @ K * 0).add(K, V).remove(K[:gone], V[:gone])
    assert total.count == 16 - gone and close(total.solve(ridge).total, wanted, 1e7)


@given(seeds, ridges)
def test_a_replaced_value_needs_no_other_metric(seed, ridge):
    """W is linear in the values: another one is written by its fact's own row."""
    C, K, V = problem(seed, 10)
    M = Preservation.of(C, jitter=0.0)
    W, memory = fold(K, V, M, ridge, torch.arange(10).split(3))
    new = V.clone()
    new[2] = V[7]
    rows = memory.unwhiten(memory.solve(memory.whiten(K[2:3]))) / ridge
    assert close(W + (new - V)[2:3].mT @ rows, joint_solution(C, K, new, ridge), 1e8)


PROCESSES = {
    "bfloat16": lambda W: rounded(torch.bfloat16),
    "rect": lambda W: largest(W, 0.4),
    "prune": lambda W: compressed(0.05),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("seed", range(5))
def test_feedback_makes_post_processing_harmless(name, seed):
    """Whatever is done to every step but the last, the weights at the end are the exact ones."""
    C, K, V = problem(seed, 15)
    base = torch.randn(7, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    process = PROCESSES[name](base)
    M, W, error = Preservation.of(C, jitter=0.0), torch.zeros_like(base), torch.zeros_like(base)
    plain = W
    parts = torch.arange(15).split(4)
    for i, part in enumerate(parts):
        written = write_keys(K[part], M, 5.0)
        exact = (V[part] - K[part] @ (W - error).mT).mT @ written.rows
        last = i == len(parts) - 1
        step, error = with_feedback(exact, error, (lambda s: s) if last else process)
        W = W + step
        careless = (V[part] - K[part] @ plain.mT).mT @ written.rows
        plain = plain + (careless if last else process(careless))
        M = M.remember(written.memory, 5.0)
    wanted = joint_solution(C, K, V, 5.0)
    assert close(W, wanted, 1e6)
    assert not close(plain, wanted, 1e9)


@given(seeds, st.integers(1, 6))
def test_novelty_is_measured_against_the_base(seed, n):
    """A key that was written is hardly new, whether it has been absorbed or not."""
    C, K, _ = problem(seed, 12)
    few, many = Preservation.of(C, jitter=0.0), Preservation.of(C, jitter=0.0)
    few = remember(few, K[:1], 1e-6)
    many = remember(many, K[:8], 1e-6)
    for M in (few, many):
        assert write_keys(K[:1], M, 1e-6).novelty[0] < 1e-4
        assert write_keys(K[11:], M, 1e-6).novelty[0] > 1e-2


def test_what_processes_do():
    step = torch.tensor([[3.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    weight = torch.tensor([[100.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert largest(weight, 0.5)(step).tolist() == [[0, -1.0], [0, 2.0]]
    values = torch.linalg.svdvals(compressed(1.0)(step))
    before = torch.linalg.svdvals(step)
    assert torch.allclose(values, torch.where(before > 1, before.log() + 1, before))


@given(seeds, st.integers(1, 8), st.sampled_from([0.1, 10.0]))
def test_on_a_null_space_kept_directions_stay_untouched(seed, n, ridge):
    """AlphaEdit: ΔW = R Kᵀ P (P Kᵀ K P + ρ)⁻¹, and ΔW U = 0 to round-off."""
    C, K, R = problem(seed, n, condition=1e6)
    values, vectors = torch.linalg.eigh(C)
    threshold = float(values[[6, 15][seed % 2]])
    kept = vectors[:, values >= threshold]
    M = Preservation.on_null_space(C, threshold)
    assert M.whitening.inside == (len(kept.mT) > 12)
    P = torch.eye(24, dtype=K.dtype) - kept @ kept.mT
    got = R.mT @ write_keys(K, M, ridge).rows
    wanted = R.mT @ K @ P @ torch.linalg.inv(P @ K.mT @ K @ P + ridge * torch.eye(24).double())
    assert close(got, wanted, 1e6)
    assert (got @ kept).norm() <= 1e-13 * got.norm()


def test_null_spaces_and_identities():
    C, K, R = problem(2, 4)
    assert Preservation.identity(C).whitening.rank == 24
    got = R.mT @ write_keys(K, Preservation.identity(C), 2.0).rows
    assert close(got, R.mT @ torch.linalg.inv(K @ K.mT + 2 * torch.eye(4).double()) @ K, 1e3)
    assert Projection.null_space(C, 1e9, relative=False).rank == 24
    share = Projection.null_space(7 * C, 1.0, relative=True).rank
    assert share == Projection.null_space(C, 1.0, relative=True).rank
    with pytest.raises(InvalidSetting, match="null_threshold"):
        Preservation.on_null_space(C, 1e-30)


@pytest.mark.parametrize("hard", [True, False])
def test_past_keys_on_a_null_space_are_remembered(hard):
    C, K, V = problem(4, 9)
    M = Preservation.on_null_space(C, 1.0, relative=True)
    ridge = 0.0 if hard else 3.0
    whole = V.mT @ write_keys(K, M, ridge).rows
    parts, _ = fold(K, V, M, ridge, torch.arange(9).split(2))
    assert close(parts, whole, 1e8)
