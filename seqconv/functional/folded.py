"""Folded tables that inference keeps from call to call, until table or weight change.

An embedding in front of a convolution is a sum of rows of the folded table, the product of table and weight (see
``kernels/numba/gather.py``). A call without gradients finds it where an earlier one left it; one that does not adds up
what it would have saved, and folds the whole table when that comes to what folding costs: at no time has more than
twice the least possible work been done.

What is kept is known by the memory of table and weight and by torch's counters of changes in place, which optimizers,
``load_state_dict`` and ``torch.nn.init`` move; fused optimizers, which do not, are noticed when they step. Writing
through ``.data`` or a NumPy view does not move the counters: on the CPU a number out of every row of the table (of
65,536 rows at most), and the weight, are compared as well, so that a change of whole rows is seen, while one of single
numbers may not be. Nothing is kept for tensors made in inference mode, which count no changes; in the capture of a CUDA
graph, whose replays would read what may be gone; in compiled graphs on a GPU, which give a table's memory to the next
uncounted; for weights that an optimizer changes in a captured graph; nor under
``torch.use_deterministic_algorithms``, as the last bits of a result may depend on whether the table was there. Where
several tables do not fit together into what may be kept, the one that was used longest ago makes way.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

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

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
EMBEDDING = "embedding_conv1d_relu_max_pool1d"  # of all that fold a table, in the same way

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
# The weights that captured graphs change, by their storages.
_replayed: dict[int, StorageWeakRef] = {}
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
        del _saved[key]  # a table that has to make way for another is to save its cost again
    return _fold(backend, key, versions, table, weight)


def may_keep(backend: str, table: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tell whether the folded table may be kept: it is not too large, and changes of its sources are counted."""
    made = passes(backend, EMBEDDING)
    assert made.folded_shape is not None
    kept = dtype or torch.promote_types(table.dtype, torch.float32)  # no narrower unless asked for
    size = math.prod(made.folded_shape(table.size(0), weight)) * kept.itemsize
    return _identify(backend, table, weight, dtype) is not None and size <= limit()


def _fold(
    backend: str,
    key: Key,
    versions: tuple[int, int],
    table: Tensor,
    weight: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    made = passes(backend, EMBEDDING)
    assert made.fold is not None
    if not may_keep(backend, table, weight, dtype):
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
    if dtype is None and torch.are_deterministic_algorithms_enabled():
        return None  # the result would depend on the calls before
    if _replayed and any(_is_replayed(one) for one in (table, weight)):
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
    tensor = tensor.view(BITS[tensor.element_size()])
    if tensor.numel() > SAMPLED and tensor.is_contiguous():
        columns = tensor.size(-1)
        return tensor.view(-1).index_select(0, _places(tensor.numel() // columns, columns))
    return tensor


@lru_cache(maxsize=64)
def _places(rows: int, columns: int) -> Tensor:
    count = min(rows, SAMPLED)
    numbers = torch.arange(count, device="cpu")
    return numbers * rows // count * columns + numbers % columns


def _is_replayed(tensor: Tensor) -> bool:
    owner = _replayed.get(tensor.untyped_storage()._cdata)
    return owner is not None and not owner.expired()


def _stepped(optimizer: torch.optim.Optimizer, _arguments: Any, _options: Any) -> None:
    """Notice what an optimizer has changed without torch's counting it: in a fused step, or in a graph's replays."""
    is_captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    if not is_captured and not any(group.get("fused") for group in optimizer.param_groups):
        return
    storages = [one.untyped_storage() for group in optimizer.param_groups for one in group["params"]]
    changed = {one._cdata for one in storages}
    with _lock:
        if is_captured:
            _replayed.update({one._cdata: StorageWeakRef(one) for one in storages})
        for key in [one for one, kept in _kept.items() if any(owner.cdata in changed for owner in kept.owners)]:
            del _kept[key]
            _saved.pop(key, None)


register_optimizer_step_post_hook(_stepped)


def _forget() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # another thread of the parent may have held it
