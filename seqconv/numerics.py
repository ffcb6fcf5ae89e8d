"""Settings of how kernels compute, for all threads of the process."""

from __future__ import annotations

from seqconv.kernels import plans

__all__ = ["are_fast_products_enabled", "set_fast_products"]


class set_fast_products:
    """Allow convolutions on the CPU to be summed by fewer products, or not; as a context manager, within the block.

    Two neighbouring positions share products of sums and differences of their inputs (Winograd's F(2,3)): 1.3 to 1.5
    times fewer multiplications for float32 layers of stride 1 and two or more taps. They are used where they are
    faster, which :func:`seqconv.explain` tells. Errors against float64 are at most twice those of torch's convolution,
    as those of all kernels are. The setting is on at first. It changes the last bits of results, and takes part in no
    graph that is compiled: a call reads it when it runs.

    Raises ``TypeError`` unless ``enabled`` is ``True`` or ``False``.
    """

    def __init__(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled must be True or False, got {enabled!r}")
        self.before, plans.fast_products = plans.fast_products, enabled

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        plans.fast_products = self.before


def are_fast_products_enabled() -> bool:
    """Tell whether convolutions on the CPU may be summed by fewer products."""
    return plans.fast_products
