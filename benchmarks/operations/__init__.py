"""The operations that can be benchmarked: their inputs, their plain definitions, and who provides them."""

from benchmarks.operations import conv_pool, layers, sweep, windows
from benchmarks.registry import add

for kind in (*conv_pool.operations(), layers.Layers(), sweep.Sweep(), windows.Windows()):
    add(kind)
