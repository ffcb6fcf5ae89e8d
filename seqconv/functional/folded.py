"""Folded tables that inference keeps from call to call, until table or weight change.

An embedding in front of a convolution is a sum of rows of the folded table, the product of table and weight (see
``kernels/numba/gather.py``). A call without gradients finds it where an earlier one left it; one that does not adds up
what it would have saved, and folds the whole table when that comes to what folding costs: at no time has more than
twice the least possible work been done.

What is kept is known by the memory of table and weight and by torch's counters of changes in place, which optimizers,
``load_state_dict`` and ``torch.nn.init`` move. Writing through ``.data`` or a NumPy view does not move them: on the CPU
a number out of every row of the table, and the weight, are compared as well, so that a change of whole rows is seen,
while one of single numbers may not be. Nothing is kept for tensors made in inference mode, which count no changes, nor
in the capture of a CUDA graph, whose replays would read what may be gone.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from seqconv.functional.passes import passes
from seqconv.kernels.geometry import Convolution
from seqconv.kernels.numba import gather_plans
from seqconv.kernels.numba.gather_plans import Plan
from seqconv.kernels.triton import gather_plans as gpu_plans

__all__ = ["VARIABLE", "find_or_fold", "forward", "is_kept", "limit", "may_keep", "plan"]

VARIABLE = "SEQCONV_FOLDED_MIB"
DEFAULT_MIB = 512

# So many numbers of a tensor are looked at for changes that torch does not count: all, or out of so many rows.
SAMPLED = 65536

# Tables whose savings are added up: more than a process has models.
WATCHED = 256

Key = tuple[Any, ...]


Owners = tuple[StorageWeakRef, StorageWeakRef]


class Saved(NamedTuple):
    """What a folded table would have saved so far, of table and weight as they are."""

    owners: Owners
    versions: tuple[int, int]
    operations: int

    def still(self, versions: tuple[int, int]) -> bool:
        """Tell whether it is of the same numbers: not of a tensor that is gone, whose place another has taken."""
        return self.versions == versions and not any(owner.expired() for owner in self.owners)


class Kept(NamedTuple):
    """A folded table and what it was made of."""

    folded: Tensor
    owners: Owners
    versions: tuple[int, int]
    samples: tuple[Tensor, ...]
    ready: torch.cuda.Event | None


_kept: OrderedDict[Key, Kept] = OrderedDict()
_saved: OrderedDict[Key, Saved] = OrderedDict()
_lock = threading.Lock()


def forward(
    backend: str,
    operation: str,
    inputs: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor | None,
    options: Any,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Run ``operation`` without gradients, from a folded table where one is kept, or if asked for one of ``dtype``."""
    found = passes(backend, operation)
    if found.fold is not None:
        tokens, table = inputs
        folded = find_or_fold(backend, tokens, table, weight, options[0], dtype)
        if folded is not None:
            return found.forward(*inputs, weight, bias, *options, want_argmax=False, folded=folded)[0]
    return found.forward(*inputs, weight, bias, *options, want_argmax=False)[0]


def plan(
    backend: str, tokens: Tensor, table: Tensor, weight: Tensor, convolution: Convolution, *, ready: bool, rows: int
) -> Plan:
    """Return how a call is computed that uses ``rows`` rows of the table; on a GPU, all that there are."""
    outputs, channels, size = weight.shape
    counts = (tokens.size(0), convolution.output_length(tokens.size(1), size))
    if backend == "triton":
        kind = gpu_plans.kind_of(table.dtype)
        return gpu_plans.forward_plan(*counts, table.size(0), channels, outputs, size, ready=ready, kind=kind)
    return gather_plans.forward_plan(*counts, rows, channels, outputs, size, ready=ready)


def fold_operations(backend: str, table: Tensor, weight: Tensor) -> int:
    """Return what it costs to fold a whole table, in multiply-adds."""
    outputs, channels, size = weight.shape
    if backend == "triton":
        kind = gpu_plans.kind_of(table.dtype)
        return gpu_plans.fold_operations(table.size(0), channels, outputs, size, kind=kind)
    return gather_plans.fold_operations(table.size(0), channels, outputs, size)


def is_kept(backend: str, table: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tell whether the folded table is there, in ``dtype`` unless that is ``None``."""
    identity = _identify(backend, table, weight, dtype)
    return identity is not None and _find(*identity, table, weight) is not None


def limit() -> int:
    """Return how many bytes of folded tables may be kept. Raises ``ValueError`` for a variable that is no number."""
    value = os.environ.get(VARIABLE, "")
    if not value:
        return DEFAULT_MIB << 20
    if not value.isdecimal():
        raise ValueError(f"{VARIABLE} must be a whole number of MiB, 0 to keep no folded tables, got {value!r}")
    return int(value) << 20


def find_or_fold(
    backend: str,
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    convolution: Convolution,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Return the folded table if it is kept, or worth making now; if one of another ``dtype`` is asked for, always.

    A table of another dtype gives other results: it is there from the first call on, or, where none can be kept, never.
    """
    if table.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    identity = _identify(backend, table, weight, dtype)
    if identity is None:
        return None
    kept = _find(*identity, table, weight)
    if kept is not None:
        if kept.ready is not None:
            stream = torch.cuda.current_stream(table.device)
            stream.wait_event(kept.ready)
            kept.folded.record_stream(stream)  # which may still read it when it is no longer kept
        return kept.folded
    key, versions = identity
    if dtype is not None:
        return _fold(backend, key, versions, table, weight, dtype)
    most = min(table.size(0), tokens.numel())
    unready = plan(backend, tokens, table, weight, convolution, ready=False, rows=most).operations
    additions = plan(backend, tokens, table, weight, convolution, ready=True, rows=most).operations["folded"]
    saving, cost = min(unready.values()) - additions, fold_operations(backend, table, weight)
    owners = _owners(table, weight)
    with _lock:
        before = _saved.pop(key, None)
        saved = before.operations if before is not None and before.still(versions) else 0
        saved += max(saving, 0)
        _saved[key] = Saved(owners, versions, saved)
        if len(_saved) > WATCHED:
            _saved.popitem(last=False)
        # The first call sees to itself: many tables are used once.
        if saving <= 0 or saved - saving < cost:
            return None
    return _fold(backend, key, versions, table, weight)


def may_keep(table: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tell whether the folded table may be kept: it is not too large, and changes of its sources are counted."""
    numbers = table.size(0) * weight.size(0) * weight.size(2)
    is_seen = not table.is_inference() and not weight.is_inference()
    kept = dtype or torch.promote_types(table.dtype, torch.float32)  # no narrower unless asked for
    return is_seen and numbers * kept.itemsize <= limit()


def _fold(
    backend: str,
    key: Key,
    versions: tuple[int, int],
    table: Tensor,
    weight: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    made = passes(backend, "embedding_conv1d_relu_max_pool1d")
    assert made.fold is not None
    if not may_keep(table, weight, dtype):
        return None
    most = limit()
    # First the samples: what changes while the table is folded differs from them.
    samples = () if table.is_cuda else tuple(_sample(one).clone() for one in (table, weight))
    owners = _owners(table, weight)
    with torch.no_grad():
        folded = made.fold(table, weight, dtype=dtype)
    ready = None
    if table.is_cuda:
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(table.device))
    if (table._version, weight._version) != versions:
        return None
    with _lock:
        for gone in [one for one, kept in _kept.items() if any(owner.expired() for owner in kept.owners)]:
            del _kept[gone]
        _kept[key] = Kept(folded, owners, versions, samples, ready)
        while sum(kept.folded.nbytes for kept in _kept.values()) > most:
            _kept.popitem(last=False)
    return folded


def _identify(
    backend: str, table: Tensor, weight: Tensor, dtype: torch.dtype | None
) -> tuple[Key, tuple[int, int]] | None:
    """Return what tells table and weight from others, and their counters of changes."""
    if table.is_inference() or weight.is_inference():
        return None
    key = (
        backend,
        table.untyped_storage()._cdata,
        table.storage_offset(),
        table.shape,
        table.stride(),
        weight.untyped_storage()._cdata,
        weight.storage_offset(),
        weight.shape,
        weight.stride(),
        table.dtype,
        dtype,
    )
    return key, (table._version, weight._version)


def _find(key: Key, versions: tuple[int, int], table: Tensor, weight: Tensor) -> Kept | None:
    """Return what is kept, if it is still true; forget it if not."""
    with _lock:
        kept = _kept.get(key)
        if kept is None:
            return None
        # A storage that is gone leaves its address to another only when nobody refers to it any more.
        if kept.versions != versions or any(owner.expired() for owner in kept.owners):
            del _kept[key]
            return None
        _kept.move_to_end(key)
    if kept.samples and not all(map(torch.equal, kept.samples, (_sample(table), _sample(weight)))):
        with _lock:
            if _kept.get(key) is kept:
                del _kept[key]
            _saved.pop(key, None)
        return None
    return kept


def _owners(table: Tensor, weight: Tensor) -> Owners:
    return StorageWeakRef(table.untyped_storage()), StorageWeakRef(weight.untyped_storage())


def _sample(tensor: Tensor) -> Tensor:
    """Return some of a tensor's numbers, out of every row as far as :data:`SAMPLED` allows, as integers of their bits.

    From row to row the column changes, so that no column is left out.
    """
    tensor = tensor.detach()
    bits = torch.int64 if tensor.element_size() == 8 else torch.int32 if tensor.element_size() == 4 else torch.int16
    if tensor.numel() > SAMPLED and tensor.is_contiguous():
        step = tensor.size(-1) + 1
        count = (tensor.numel() - 1) // step + 1
        if count > SAMPLED:
            step, count = step * -(-count // SAMPLED), (tensor.numel() - 1) // (step * -(-count // SAMPLED)) + 1
        tensor = tensor.as_strided((count,), (step,), tensor.storage_offset())
    return tensor.view(bits)


def _forget() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # another thread of the parent may have held it
