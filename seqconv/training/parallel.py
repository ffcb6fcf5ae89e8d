"""A model on several ranks: in ``DistributedDataParallel``, with the same weights and buffers everywhere."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from seqconv.training.ranks import Ranks

__all__ = ["in_parallel", "share_buffers", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that a ``DistributedDataParallel`` holds, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def in_parallel(model: nn.Module, ranks: Ranks) -> Iterator[nn.Module]:
    """Yield what training steps call: on several ranks ``model`` in ``DistributedDataParallel``, unless it is in one.

    All ranks get rank 0's weights and buffers here. ``DistributedDataParallel`` would send buffers before each step,
    the series of a :class:`~seqconv.models.WindowSource` too, and write to it, whose memory may be read-only.
    """
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    if not ranks.several or not trainable or isinstance(model, DistributedDataParallel):
        yield model
        return
    share(model.state_dict().values())
    parallel = DistributedDataParallel(model, init_sync=False)
    parallel.broadcast_buffers = False
    meet_before_first_passes(parallel, ranks)
    try:
        yield parallel
    finally:
        parallel._remove_autograd_hooks()  # or a backward pass of the model by itself would wait for the other ranks


def meet_before_first_passes(parallel: DistributedDataParallel, ranks: Ranks) -> None:
    """Have the ranks meet before the first two forward passes, so that none fails while another is inside.

    The second one exchanges the order of the gradients' buckets, later ones exchange nothing.
    """
    passes = itertools.count(1)

    def meet(_module: nn.Module, _inputs: Any) -> None:
        ranks.largest(0)
        if next(passes) == 2:
            hook.remove()

    hook = parallel.register_forward_pre_hook(meet)


def share_buffers(model: nn.Module) -> None:
    """Give all ranks rank 0's buffers, a norm's running statistics for one; those that are no state are left alone."""
    buffers = dict(model.named_buffers())
    share(value for name, value in model.state_dict().items() if name in buffers)


def share(values: Iterable[Any]) -> None:
    """Overwrite the tensors with rank 0's."""
    for value in values:
        if isinstance(value, Tensor):  # a module's extra state may be anything
            received = value.clone(memory_format=torch.contiguous_format)
            distributed.broadcast(received, 0)
            value.copy_(received)  # by torch, so that what is remembered of the old values is seen to be stale
