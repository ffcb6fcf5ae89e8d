"""Every window's answer from one pass over a series: :func:`sliding_inference`, and row by row, :class:`Stream`."""

from seqconv.sliding.inference import SlidingReport, sliding_inference
from seqconv.sliding.stream import Stream

__all__ = ["SlidingReport", "Stream", "sliding_inference"]
