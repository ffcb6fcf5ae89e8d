"""SlidingWindows on the ranks of DistributedDataParallel: an epoch that ends on all of them."""

from __future__ import annotations

import datetime
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn

from seqconv.data import SlidingWindows

UNEVEN = ("pad", "drop")


def loader(rank: int, uneven: str) -> SlidingWindows:
    return SlidingWindows(
        np.sin(np.arange(129.0)), lookback=1, delay=-1, target_column=0, batch_size=64, shuffle=True, seed=1, rank=rank,
        world_size=2, uneven=uneven,
    )  # fmt: skip


def drawn() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(1, 1).double()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0][:, 0]), batch[1][:, None])


def of_a_rank(rank: int, meeting: Path) -> list[tuple[int, list[float]]]:
    """Return how many batches it saw, and the parameters behind them; this is run in a process of its own."""
    waits = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=waits)
    told = []
    for uneven in UNEVEN:
        model, optimizer = drawn()
        parallel, batches = nn.parallel.DistributedDataParallel(model), 0
        for batch in loader(rank, uneven):
            optimizer.zero_grad()
            loss_of(parallel, batch).backward()
            optimizer.step()
            batches += 1
        distributed.barrier()
        told.append((batches, [parameter.item() for parameter in model.parameters()]))
    distributed.destroy_process_group()
    return told


def test_an_epoch_of_129_windows_ends_on_both_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank steps as one process does with the mean of both ranks' gradients."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    expected = [of_one_process(uneven) for uneven in UNEVEN]
    # Not forked: other tests of this process may have left threads, and locks that these would have to release.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        first, second = executor.map(of_a_rank, range(2), [tmp_path / "meeting"] * 2, timeout=120)
    assert first == second
    assert [batches for batches, _ in first] == [2, 1]
    # float64 sums of 64 values of size 1: relative errors below 64 * 2**-53, of a few steps.
    np.testing.assert_allclose([parameters for _, parameters in first], expected, rtol=1e-13)


def of_one_process(uneven: str) -> list[float]:
    """Return the parameters after an epoch of the batches of both ranks."""
    model, optimizer = drawn()
    for both in zip(*(loader(rank, uneven) for rank in range(2)), strict=True):
        optimizer.zero_grad()
        (sum(loss_of(model, batch) for batch in both) / 2).backward()
        optimizer.step()
    return [parameter.item() for parameter in model.parameters()]
