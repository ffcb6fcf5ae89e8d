"""One line on stderr for each epoch: a moving bar on a terminal, a plain line anywhere else."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Progress"]


class Progress:
    """The line of one epoch. ``enabled=False`` writes nothing."""

    def __init__(self, *, epoch: int, epochs: int, step: int, steps: int, enabled: bool) -> None:
        self.label = f"epoch {epoch}/{epochs}"
        self.enabled = enabled and sys.stderr is not None  # None where the process was started with stderr closed
        self.bar: Any = None
        if self.enabled and sys.stderr.isatty():
            from tqdm import tqdm  # here, as models can be trained without a terminal, and without tqdm

            # The training loop decides when to redraw, so tqdm need not look at the clock.
            self.bar = tqdm(total=steps, initial=step, desc=self.label, unit="step", mininterval=0, dynamic_ncols=True)

    def show(self, step: int, values: dict[str, float], remark: str = "") -> None:
        """Redraw the bar at ``step``, with the means so far."""
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(filter(None, [text(values), remark])), refresh=False)
            self.bar.n = step
            self.bar.refresh()

    def finish(self, step: int, values: dict[str, float]) -> None:
        """Write the epoch's figures and end the line."""
        if self.bar is not None:
            self.show(step, values)
        elif self.enabled:
            print(f"{self.label}: {text(values)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


def text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
