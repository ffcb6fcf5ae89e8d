"""What torch's profiler calls the kernels: by their operation, forward and backward, and nothing else changes."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import seqconv

TOKENS = torch.randint(9, (2, 12))
SERIES = seqconv.Windows(torch.randn(40, 4), torch.tensor([0, 7]), 12)
CALLS = {
    "conv1d_relu_max_pool1d": (lambda: seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), torch.randn(2, 4, 12)),
    "conv1d_relu_global_max_pool1d": (lambda: seqconv.ConvReLUGlobalMaxPool1d(4, 6, 3), torch.randn(2, 4, 12)),
    "window_conv1d_relu_max_pool1d": (lambda: seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), SERIES),
    "embedding_conv1d_relu_max_pool1d": (lambda: seqconv.EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2), TOKENS),
    "embedding_conv1ds_relu_global_max_pool1d": (
        lambda: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(9, 4, 6, [2, 3]),
        TOKENS,
    ),
}


def named(call):
    """Return the events of ``call`` that torch does not name itself."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    names = [event.name for event in profiler.events()]
    assert not any("_Fused" in name or "_Several" in name for name in names)
    return [name for name in names if name.startswith("seqconv::")]


@pytest.mark.parametrize("operation", CALLS)
def test_events_have_the_operations_names(operation):
    make, input = CALLS[operation]
    layer = make()
    layer.backend = "numba"
    name = f"seqconv::{operation}"
    assert named(lambda: layer(input).sum().backward()) == [name, f"{name}Backward"]
    with torch.no_grad():
        assert named(lambda: layer(input)) == [name]
    assert name in layer(input).grad_fn.name()
