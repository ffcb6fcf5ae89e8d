"""The description of the machine."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqconv import environment


def test_describes_itself_in_json():
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"machine", "versions", "threads", "commit"}
    assert set(found["machine"]) == {"cpu", "cores", "memory_gib", "simd", "gpus", "system"}
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["seqconv"]
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert found["machine"]["cpu"]
    assert found["machine"]["cores"] >= 1
    assert len(found["machine"]["gpus"]) == torch.cuda.device_count()


def test_leaves_torch_its_threads():
    """In a process of its own, since Numba starts its threads once."""
    program = "import torch; torch.set_num_threads(1); from seqconv.environment import describe; describe()\n"
    program += "print(torch.get_num_threads(), describe()['threads']['torch'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_says_it_in_one_line():
    found = environment.describe()
    line = environment.one_line(found)
    assert "\n" not in line
    assert f"torch {found['versions']['torch']}" in line
    assert found["machine"]["cpu"] in line
    found["commit"], found["versions"]["triton"] = None, None
    assert environment.one_line(found).endswith("commit none")
    assert "triton" not in environment.one_line(found)


def test_what_is_not_installed_has_no_version():
    assert environment.version("a-package-that-does-not-exist") is None


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")])
def test_there_need_be_no_commit(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment.commit() is None


def test_another_checkout_around_the_package_is_not_its_commit(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), *author, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    package = tmp_path / "site" / "seqconv"
    package.mkdir(parents=True)
    copy = package / "environment.py"
    copy.write_bytes(Path(environment.__file__).read_bytes())
    assert runpy.run_path(str(copy))["commit"]() is None


def test_numba_need_not_be_there(monkeypatch):
    for name in ("numba", "llvmlite", "llvmlite.binding"):
        monkeypatch.setitem(sys.modules, name, None)
    found = environment.describe()
    assert found["threads"]["numba"] is None
    assert found["machine"]["simd"] == []
