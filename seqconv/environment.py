"""The machine and the versions behind a figure: printed by ``seqconv info``, written into every results file."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["describe", "one_line"]

PACKAGES = ("seqconv", "torch", "triton", "numba", "numpy", "pandas")


def describe() -> dict[str, Any]:
    """Return the machine, versions, threads and commit as a dictionary that JSON can hold.

    Keys: ``machine`` (``cpu``, ``cores``, ``memory_gib``, ``simd``, ``gpus``, ``system``), ``versions`` (package to
    version, ``None`` where it is not installed), ``threads`` (``torch``, and ``numba``, ``None`` without it) and
    ``commit``.
    """
    import torch

    # Asking Numba for its number of threads starts them, which sets torch's number, too, where both share OpenMP.
    torch_threads = torch.get_num_threads()
    numba_threads = threads_of_numba()
    torch.set_num_threads(torch_threads)

    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": memory_gib(),
            "simd": simd_features(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "threads": {"torch": torch_threads, "numba": numba_threads},
        "commit": commit(),
    }


def one_line(environment: dict[str, Any]) -> str:
    """Return what a caption under a table needs of :func:`describe`, in one line."""
    machine, versions = environment["machine"], environment["versions"]
    hardware = ", ".join([f"{machine['cores']} x {machine['cpu']}", *machine["gpus"]])
    software = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "numba") if versions.get(name))
    return (
        f"{hardware}; {software}; {environment['threads']['torch']} threads; commit {environment['commit'] or 'none'}"
    )


def threads_of_numba() -> int | None:
    """Return the number of Numba's threads, or ``None`` where it is not installed: GPUs need none."""
    try:
        import numba
    except ImportError:
        return None
    return int(numba.get_num_threads())


def version(package: str) -> str | None:
    """Return the installed version of ``package``, or ``None``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return the processor's name as its system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Return the machine's memory in GiB, or ``None`` where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def simd_features() -> list[str]:
    """Return those of the CPU's vector extensions that matter to the kernels, by LLVM's names; none without LLVM."""
    try:
        from llvmlite import binding
    except ImportError:
        return []

    wanted = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16", "neon", "sve")
    features = binding.get_host_cpu_features()
    return [name for name in wanted if features.get(name)]


def commit() -> str | None:
    """Return the short commit of the checkout that holds this package, ``+`` behind it if changed, or ``None``."""
    here = Path(__file__)
    # Installed into an environment inside some other checkout, the package is not among that checkout's files.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*")


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
