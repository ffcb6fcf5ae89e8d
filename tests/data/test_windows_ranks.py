"""SlidingWindows on the ranks of DistributedDataParallel: an epoch that ends on all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from seqconv.data import SlidingWindows

RANK = """
import datetime, json, sys
import numpy as np
import torch
from torch import distributed, nn
from seqconv.data import SlidingWindows

rank, meeting = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
told = []
for uneven in ("pad", "drop"):
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
    told.append([batches, [parameter.item() for parameter in model.parameters()]])
print(json.dumps(told))
distributed.destroy_process_group()
"""


def test_an_epoch_of_129_windows_ends_on_both_ranks(tmp_path: Path) -> None:
    """Each rank steps as one process does with the mean of both ranks' gradients."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meeting")],
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
    assert told[0] == told[1]
    assert [batches for batches, _ in told[0]] == [2, 1]
    for uneven, (_, parameters) in zip(("pad", "drop"), told[0], strict=True):
        # float64 sums of 64 values of size 1: relative errors below 64 * 2**-53, of a few steps.
        np.testing.assert_allclose(parameters, of_one_process(uneven), rtol=1e-13)


def of_one_process(uneven: str) -> list[float]:
    """Return the parameters after an epoch of the batches of both ranks."""
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
    return [parameter.item() for parameter in model.parameters()]
