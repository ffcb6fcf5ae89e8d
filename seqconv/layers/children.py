"""Layers that compute in place of their children: when they must not, and the call that runs the children instead.

A fused layer reads its children's weights and does not call them. Hooks, pruning, weight and spectral norm,
parametrizations, or another module in a child's place take effect only when the child is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from seqconv import backends
from seqconv.functional import arguments
from seqconv.kernels.reference.conv_pool import behind
from seqconv.kernels.source import limits
from seqconv.layers.options import refuse_lengths

__all__ = ["ChildrenCall", "call_reason", "pooled"]


class ChildrenCall(NamedTuple):
    """A call of an operation that the layer's children compute, and why."""

    operation: str
    reason: str
    compute: Callable[[], Tensor]

    def run(self, backend: str) -> Tensor:
        """Call the children. Raises ``BackendError`` where a backend other than ``reference`` is asked for."""
        backends.check_reference(self.operation, backend, self.reason)
        return self.compute()

    def explain(self, backend: str) -> backends.Explanation:
        """Tell that torch's own operations serve the call, and why no other backend does."""
        return backends.check_reference(self.operation, backend, self.reason)


def call_reason(*children: tuple[str, nn.Module | None, type[nn.Module]]) -> str | None:
    """Return why children must be called, or ``None`` where each does no more than its class's ``forward``.

    A child is given as its name, the module, and the class that it should be of. Measured on a busy EPYC under Python
    3.11, where reading ``self.conv`` takes 1.2 microseconds: 0.53 for one child, 0.87 for two (CPU time, least of 40 x
    5000 calls).
    """
    if _has_any_global_hook():
        return "hooks on all modules need the children's own calls"
    for name, module, kind in children:
        if type(module) is not kind:
            return f"{name} is a {type(module).__name__}, not an nn.{kind.__name__}, and runs itself"
        own = module.__dict__  # where nn.Module keeps all of this: read at every call, in half the time of attributes
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return f"hooks on {name} need the module's own call"
        if "forward" in own or "_conv_forward" in own:
            return f"{name} has a forward of its own"
    return None


def pooled(embedded: Tensor, lengths: Tensor | None, convolution: nn.Module, pool: tuple[Any, ...] | None) -> Tensor:
    """Return the pooled activation of ``(N, L, C)`` or ``(L, C)``, of the first ``lengths`` ``(N,)`` or ``()`` of each.

    ``pool`` is what a layer's method ``pool`` returns; ``None`` is the global maximum. Raises ``ValueError`` where
    ``lengths`` are given and the convolution's number of positions is unknown.
    """
    if lengths is None:
        return _pooled(F.relu(convolution(embedded.transpose(-1, -2))), pool)
    if not isinstance(convolution, nn.Conv1d):
        raise ValueError(f"lengths must be None where the convolution is a {type(convolution).__name__}")
    refuse_lengths(convolution.padding_mode)
    batched = embedded.dim() == 3
    rows = embedded if batched else embedded.unsqueeze(0)
    samples, length, _ = rows.shape
    cut = arguments.lengths(lengths, rows.device, samples, length, batched)
    sizes = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    geometry = arguments.geometry(convolution.kernel_size[0], *sizes)
    checked = None if pool is None else arguments.pool(None, *pool)
    positions, windows = limits(cut, convolution.kernel_size[0], geometry, checked)
    activation = F.relu(convolution(rows.masked_fill(behind(cut, rows.size(1)).mT, 0).transpose(1, 2)))
    lowest = 0 if pool is None else -torch.inf
    output = _pooled(activation.masked_fill(behind(positions, activation.size(2)), lowest), pool)
    if pool is not None:
        output = output.masked_fill(behind(windows, output.size(2)), 0)
    return output if batched else output.squeeze(0)


def _pooled(activation: Tensor, pool: tuple[Any, ...] | None) -> Tensor:
    if pool is None:
        return activation.max(-1).values
    *sizes, memory_format = pool
    output: Tensor = F.max_pool1d(activation, *sizes)
    if memory_format is torch.contiguous_format:
        return output.contiguous()
    return output.transpose(-1, -2).contiguous().transpose(-1, -2)
