"""The operations that can be benchmarked: their inputs, their plain definitions, and who provides them."""

from benchmarks.operations import gather, layers, models, recurrent, recurrent_gpu, rivals, sliding, wild, windows
from benchmarks.registry import add, operation

__all__ = ["operation"]

for module in (layers, gather, models, recurrent, recurrent_gpu, rivals, sliding, wild, windows):
    for kind in module.operations():
        add(kind)
