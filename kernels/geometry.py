"""The geometry of a 1-D convolution and of the pooling behind it, which every floor is given beside the tensors."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Convolution", "Pool"]


class Convolution(NamedTuple):
    """A convolution along the last axis: ``stride``, ``(left, right)`` zero padding, ``dilation`` and ``groups``."""

    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1

    def output_length(self, length: int, kernel_size: int) -> int:
        """Return the number of output positions, 0 or less where the kernel does not fit into the padded input."""
        span = self.dilation * (kernel_size - 1) + 1
        return (length + sum(self.padding) - span) // self.stride + 1


class Pool(NamedTuple):
    """A maximum over windows of ``size`` positions, padded by minus infinity on both sides.

    The result has the memory format of the input, or is ``contiguous``.
    """

    size: int
    stride: int
    padding: int = 0
    dilation: int = 1
    ceil_mode: bool = False
    contiguous: bool = False

    def output_length(self, length: int) -> int:
        """Return the number of windows, 0 or less where none fits.

        Under ``ceil_mode`` a last window that runs over the end counts, but only if it starts inside the input or its
        left padding.
        """
        span = self.dilation * (self.size - 1) + 1
        room = length + 2 * self.padding - span + (self.stride - 1 if self.ceil_mode else 0)
        windows = room // self.stride + 1
        # Arithmetic instead of a branch: ``length`` may be a tensor.
        return windows - 1 * (self.ceil_mode and (windows - 1) * self.stride >= length + self.padding)
