"""The commands: a quick run of the windows suite, and the GPU's command where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks import results
from benchmarks.__main__ import ROOT, main
from benchmarks.cold import first_call
from benchmarks.operations.conv_pool import layer_case


def test_a_quick_run_of_the_windows_suite(tmp_path):
    path = tmp_path / "windows.json"
    assert main(["--suite", "windows", "--quick", "--select", "lookback240", "--out", str(path)]) == 0
    found = results.read(path)
    providers = {one["provider"] for one in found["measurements"]}
    assert {
        "seqconv numba",
        "seqconv reference",
        "np.copyto, same bytes",
        "torch index_select, whole batch",
    } <= providers
    numba = {one["baseline"] for one in found["measurements"] if one["provider"] == "seqconv numba"}
    loaders = {"DataLoader over indexed samples", "DataLoader over sliced samples"}
    assert numba == {"np.copyto, same bytes", "fancy indexing per sample, np.stack"} | loaders
    for one in found["measurements"]:
        assert len(one["samples"]) == len(one["baseline_samples"]) >= 5
        assert all(seconds > 0 for seconds in one["samples"] + one["baseline_samples"])
    assert path.with_suffix(".md").exists()
    assert path.with_suffix(".png").exists()


def test_a_first_call_is_timed():
    assert first_call(layer_case("jena2", "training_step", batch=2), "torch eager") > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="concerns machines without a GPU")
def test_the_gpu_command_says_that_there_is_no_gpu_and_what_would_run():
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "sees no GPU" in process.stdout
    assert "conv_pool" in process.stdout
    assert "max-autotune" in process.stdout


def test_the_overlay_has_its_parent_s_packages_and_this_checkout(tmp_path):
    # A parent that finds its packages through a .pth file: a nested --system-site-packages would miss them.
    pytest.importorskip("setuptools", reason="the overlay builds seqconv with its parent's setuptools")
    parent, overlay = tmp_path / "parent", tmp_path / "overlay"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", parent], check=True)
    packages = next(parent.glob("lib/python*/site-packages"))
    packages.joinpath("far.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    subprocess.run([parent / "bin" / "python", ROOT / "benchmarks" / "gpu_env.py", overlay], check=True)
    query = "import numpy, seqconv.kernels; print(seqconv.kernels.__path__[0], numpy.__file__)"
    process = subprocess.run([overlay / "bin" / "python", "-c", query], cwd=tmp_path, capture_output=True, text=True)
    assert process.stdout.split() == [str(ROOT / "kernels"), str(Path(numpy.__file__))], process.stderr


def test_an_overlay_without_pip_finds_seqconv_where_it_stands(tmp_path):
    parent, overlay = tmp_path / "parent", tmp_path / "overlay"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", parent], check=True)
    make = [parent / "bin" / "python", ROOT / "benchmarks" / "gpu_env.py", overlay]
    assert "No module named pip" in subprocess.run(make, check=True, capture_output=True, text=True).stdout
    query = "import seqconv_finder as f; print(*(f.Finder.find_spec(n).origin for n in ('seqconv', 'seqconv.kernels')))"
    process = subprocess.run([overlay / "bin" / "python", "-c", query], cwd=tmp_path, capture_output=True, text=True)
    expected = [str(ROOT / "seqconv" / "__init__.py"), str(ROOT / "kernels" / "__init__.py")]
    assert process.stdout.split() == expected, process.stderr


def test_a_folder_for_wheels_must_hold_some(tmp_path):
    make = [sys.executable, ROOT / "benchmarks" / "gpu_env.py", tmp_path / "overlay"]
    environment = os.environ | {"SEQCONV_WHEELS": str(tmp_path)}
    process = subprocess.run(make, env=environment, capture_output=True, text=True)
    assert process.returncode != 0
    assert "SEQCONV_WHEELS must name a folder with wheels" in process.stderr
