"""Modes and tensors that need torch's own operations, as a kernel that reads and writes memory cannot be followed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

__all__ = ["active", "in_plain_memory", "is_watched", "unfollowed"]

# Asked at every call: looked up once.
_is_compiling = torch.compiler.is_compiling
_transforms = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_trace = torch._C._get_tracing_state
_autocast = torch.is_autocast_enabled
_strided = torch.strided
_is_batched = torch._C._functorch.is_batchedtensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor

AUTOCAST = "autocast chooses among torch's own operations"


def unfollowed(source: Tensor, *others: Tensor | None, autocast: bool = False) -> str | None:
    """Return what needs torch's own operations, an active mode or one of the tensors of one device; else ``None``.

    Under ``torch.compile`` kernels are operators of the graph, and so can be followed; an exported program, though, may
    be run where they do not exist. ``autocast`` tells that the kernel itself does what autocast asks for.
    """
    if _is_compiling():
        if torch.compiler._is_exporting_flag:  # Dynamo of torch 2.11 takes is_exporting() for true in any graph
            return "torch.export needs torch's own operations"
        if _transforms():
            return "transforms of functions (vmap, grad, jvp) need torch's own operations"
        return AUTOCAST if not autocast and _autocast(source.device.type) else None
    if (reason := active(source.device.type, autocast=autocast)) is not None:
        return reason
    for tensor in (source, *others):
        if tensor is None:
            continue
        kind = type(tensor)
        if kind is not Tensor and kind is not Parameter:
            return f"it serves plain tensors, got {kind.__name__}"
        if tensor.layout is not _strided or tensor.is_neg() or tensor._is_zerotensor():
            return f"it serves plain memory, got {_describe(tensor)}"
    return None


def active(device: str, *, autocast: bool = False) -> str | None:
    """Return what is active in eager mode that needs torch's own operations on any tensors, see :func:`unfollowed`."""
    if _transforms():
        return "transforms of functions (vmap, grad, jvp) need torch's own operations"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation needs torch's own operations"
    if _modes() > 0:
        return "a dispatch mode (fake tensors, tracing, counting) needs torch's own operations"
    if _trace() is not None:
        return "torch.jit.trace needs torch's own operations"
    if not autocast and _autocast(device):
        return AUTOCAST
    return None


def is_watched() -> bool:
    """Tell whether tensors may be stand-ins for others, whose values cannot be read."""
    return _transforms() or _modes() > 0 or _trace() is not None


def in_plain_memory(tensor: Tensor) -> Tensor:
    """Return a strided tensor whose memory holds its numbers: torch may negate lazily, and has zeros without memory.

    Raises ``RuntimeError`` for several gradients in one, as ``is_grads_batched`` hands them over.
    """
    if _is_batched(tensor) or _is_legacy_batched(tensor):
        raise RuntimeError("kernels take no batched gradients: pass backend='reference', which torch can follow")
    return tensor.new_zeros(tensor.shape) if tensor._is_zerotensor() else tensor.resolve_neg()


def _describe(tensor: Tensor) -> str:
    if tensor.layout is not _strided:
        return str(tensor.layout)
    return "a negated view" if tensor.is_neg() else "zeros without memory"
