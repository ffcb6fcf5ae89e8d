"""The operations that can be benchmarked: their inputs, their plain definitions, and who provides them."""

from benchmarks.operations import conv_pool, gather, layers, models, peers, rivals, sweep, windows
from benchmarks.registry import add

for kind in (
    *conv_pool.operations(),
    *gather.operations(),
    layers.Layers(),
    models.Models(),
    peers.Peers(),
    rivals.Rivals(),
    sweep.Sweep(),
    windows.Windows(),
):
    add(kind)
