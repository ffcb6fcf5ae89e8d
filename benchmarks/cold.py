"""The first call in a fresh process: with empty compilation caches, as on a new machine, and with the caches that left.

``seconds`` runs from the provider's making to the end of its first call. Importing torch, seqconv and Numba and making
the inputs come before, and are the same for every provider; a kernel's own module, which its first call imports, and
loading what was compiled from the disk cache are in it. Who has not imported Numba before waits for that too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.registry import Candidate, Case, operation

__all__ = ["measure"]

ROOT = Path(__file__).resolve().parent.parent
CACHES = ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def measure(candidate: Candidate) -> dict[str, float]:
    """Return the seconds of a first call with ``empty_caches`` and with ``warm_caches``."""
    request = json.dumps({"case": candidate.case.as_dict(), "provider": candidate.provider.name})
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="seqconv-cold-") as folder:
        environment = os.environ | {name: str(Path(folder, name)) for name in CACHES}
        for state in ("empty_caches", "warm_caches"):
            process = subprocess.run(
                [sys.executable, "-m", "benchmarks.cold"],
                input=request,
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=environment,
                timeout=280,
                check=False,
            )
            if process.returncode:
                raise RuntimeError(f"the first call of {candidate} failed in a fresh process:\n{process.stderr}")
            seconds[state] = float(json.loads(process.stdout.splitlines()[-1])["seconds"])
    return seconds


def first_call(case: Case, provider: str) -> float:
    """Return the seconds of a provider's first call in this process."""
    import torch

    from benchmarks.precision import precision

    kind = operation(case.operation)
    inputs = kind.inputs(case, kind.values[0])
    with precision(case):
        if case.device != "cpu":
            torch.empty(1, device=case.device)  # the driver's own start is no provider's
        # Nor are torch's own imports at its first backward pass.
        torch.autograd.backward(torch.ones((), requires_grad=True), torch.ones(()))
        start = time.perf_counter()
        step: Any = kind.step(case, kind.providers[provider].make(case), inputs, case.torch_dtype)
        step.call()
        if case.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps({"seconds": first_call(Case.from_dict(asked["case"]), asked["provider"])}))
