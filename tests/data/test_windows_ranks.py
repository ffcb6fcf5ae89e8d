"""SlidingWindows on the ranks of DistributedDataParallel: an epoch that ends on all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from seqconv.data import SlidingWindows

RANK = """
import datetime, json, sys
import numpy as np
import torch
from torch import distributed, nn
from seqconv.data import SlidingWindows

rank, meeting, uneven = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1).double())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
windows = SlidingWindows(
    np.sin(np.arange(129.0)), lookback=1, delay=-1, target_column=0, batch_size=64, shuffle=True, seed=1, rank=rank,
    world_size=2, uneven=uneven,
)
batches = 0
for inputs, targets in windows:
    optimizer.zero_grad()
    nn.functional.mse_loss(model(inputs[:, 0]), targets[:, None]).backward()
    optimizer.step()
    batches += 1
distributed.barrier()
print(json.dumps([batches, [parameter.item() for parameter in model.parameters()]]))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize(("uneven", "batches"), [("pad", 2), ("drop", 1)])
def test_an_epoch_of_129_windows_ends_on_both_ranks(tmp_path: Path, uneven: str, batches: int) -> None:
    """Each rank steps as one process does with the mean of both ranks' gradients."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meeting"), uneven],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    try:
        told = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert [count for count, _ in told] == [batches, batches]
    assert told[0][1] == told[1][1]

    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ranks = [
        SlidingWindows(np.sin(np.arange(129.0)), lookback=1, delay=-1, target_column=0, batch_size=64, shuffle=True,
                       seed=1, rank=rank, world_size=2, uneven=uneven)
        for rank in range(2)
    ]  # fmt: skip
    for each in zip(*ranks, strict=True):
        optimizer.zero_grad()
        losses = [torch.nn.functional.mse_loss(model(inputs[:, 0]), targets[:, None]) for inputs, targets in each]
        (sum(losses) / 2).backward()
        optimizer.step()
    # float64 sums of 64 values of size 1: relative errors below 64 * 2**-53, of a few steps.
    np.testing.assert_allclose(told[0][1], [parameter.item() for parameter in model.parameters()], rtol=1e-13)
