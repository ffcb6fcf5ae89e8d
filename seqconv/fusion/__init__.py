"""Fused calls put into models as they are, by one line or by ``torch.compile``.

``tracing`` makes a graph of a forward pass, ``guards`` tells when it holds, ``links`` reads its nodes, ``matching``
finds what a fused call replaces, ``calls`` are these calls, ``program`` runs the graph in the model's place,
``prepared`` runs one with everything done that can be done before; ``report`` tells what was found; ``backend`` does
the same to graphs of ``torch.compile``.
"""

from seqconv.fusion.prepared import prepare
from seqconv.fusion.program import fuse, unfuse
from seqconv.fusion.report import FusionReport, fusion_report

__all__ = ["FusionReport", "fuse", "fusion_report", "prepare", "unfuse"]
