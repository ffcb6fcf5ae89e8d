"""``seqconv train`` in the two processes that a real ``torchrun`` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from seqconv.cli import main
from seqconv.data import ArrayBatches, SlidingWindows
from seqconv.experiments import load_task

ROOT = Path(__file__).resolve().parents[2]
LEARNING_RATE = 1e-3


@pytest.fixture(autouse=True)
def _no_real_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path / "cache"))


def torchrun(line: str) -> subprocess.Popen[str]:
    """Start the command in two processes."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seqconv"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*run, *line.split()], text=True, env=environment, start_new_session=True, **pipes)


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a process that ends by itself has printed."""
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return printed, errors


def assert_same_run(two: Path, one: Path) -> None:
    """Compare the files of a run in two processes with those of one.

    A batch's gradient is a mean of two means, a few float32 roundings of 6e-8 apart from the mean of all. A step of
    RMSprop has the size of the learning rate however small the gradient is: where the samples' gradients cancel it to
    a thousandth, the rounding becomes 1e-4 of a step. Another sample in a batch changes whole steps.
    """
    for name in ("best.pt", "last.pt"):
        expected, found = (torch.load(folder / name, weights_only=True)["model"] for folder in (one, two))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-2 * LEARNING_RATE)
    tables = [pd.read_csv(folder / "history.csv").drop(columns=["seconds", "ms_per_step"]) for folder in (two, one)]
    pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=2e-6)


def test_two_processes_train_as_one_with_whole_batches(capsys, tmp_path):
    # The reference backend, since the others would compile kernels here.
    line = "train jena --model convnet --backend reference --epochs 2 --steps-per-epoch 4 --validation-steps 3"
    line += f" --batch-size 64 --learning-rate {LEARNING_RATE} --json --out {tmp_path}/"
    process = torchrun(line + "two")
    assert main([*(line + "one").split(), "--quiet"]) == 0
    one = json.loads(capsys.readouterr().out)
    printed, progress = finished(process)
    two = json.loads(printed)  # one document: the first process prints alone
    assert progress.count("epoch 2/2") == 1
    assert (two["validation"], two["test"]) == pytest.approx((one["validation"], one["test"]), rel=2e-6)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_sigterm_stops_both_processes_and_they_resume_to_the_numbers_of_one(capsys, tmp_path):
    line = f"train imdb --model bag --steps-per-epoch 2 --validation-steps 1 --learning-rate {LEARNING_RATE} --quiet"
    process = torchrun(f"{line} --epochs 5000 --out {tmp_path}/two")
    checkpoint = tmp_path / "two" / "last.pt"
    until = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no checkpoint in two minutes"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on, and raises it as an exception of its own
    _, errors = process.communicate(timeout=60)
    assert errors.count(f"interrupted: resume from {checkpoint}") == 2
    epochs = len(torch.load(checkpoint, weights_only=True)["history"]) + 1
    assert epochs < 5000
    finished(torchrun(f"{line} --epochs {epochs} --resume --out {tmp_path}/two"))
    assert main(f"{line} --epochs {epochs} --out {tmp_path}/one".split()) == 0
    assert_same_run(tmp_path / "two", tmp_path / "one")
    capsys.readouterr()
    assert main(f"{line} --epochs {epochs} --resume --out {tmp_path}/two".split()) == 1
    assert "is of a run with world_size 2, got 1" in capsys.readouterr().err


def test_compare_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", "imdb"]) == 1
    assert "compare runs in one process, got WORLD_SIZE=2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["imdb", "jena"])
def test_a_tasks_loaders_share_out_each_batch(name, monkeypatch):
    def loaders() -> list[ArrayBatches | SlidingWindows]:
        task = load_task(name)
        return [task.train(), task.validation, task.test]

    whole = [next(iter(loader))[1] for loader in loaders()]
    for rank in range(2):
        ranks = SimpleNamespace(rank=rank, world_size=2)
        monkeypatch.setattr("seqconv.experiments.task.Ranks", lambda ranks=ranks: ranks)
        parts = loaders()
        assert [loader.uneven for loader in parts] == ["pad", "keep", "keep"]
        for part, batch in zip(parts, whole, strict=True):
            assert torch.equal(next(iter(part))[1], batch[rank::2])
    monkeypatch.setattr("seqconv.experiments.task.Ranks", lambda: SimpleNamespace(rank=0, world_size=3))
    with pytest.raises(ValueError, match="batch_size, which 3 processes share out, must be a multiple of 3, got 128"):
        loaders()
