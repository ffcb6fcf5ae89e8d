"""Folded tables that inference keeps from call to call, for weights that are promised to stay as they are.

An embedding in front of a convolution is a sum of rows of the folded table, the product of table and weight (see
``kernels/numba/gather.py``). A call without gradients looks for the table that an earlier call has kept. Where there is
none, the call adds what the table would have saved it to a running total; once the total reaches the cost of folding,
the whole table is folded and kept. So the work done is at no time more than twice the least possible.

Tables are kept only for tensors that :class:`frozen` promises to stay as they are. Changes that torch's version
counters show are noticed all the same: those of optimizers, ``load_state_dict`` and ``torch.nn.init``. Fused optimizers
are noticed when they step. Writes through ``.data``, a NumPy view or a kernel of one's own could only be found by
comparing every byte. On a GPU a comparison would stop the host. On the CPU it was measured, for a table of 10,000 x 128
and a convolution 128 -> 32, kernel 7, pool 5, 500 tokens a sample: microseconds of CPU time of one thread (EPYC, 32 MiB
of third cache, shared with others), alternating, the least and the quartiles of 60:

====================================  =======================  ========================  =============================
batch                                 1                        32                        128
====================================  =======================  ========================  =============================
call with the table, none compared    294; 454, 523, 616       1542; 2129, 2583, 3320    6028; 10060, 12104, 13255
call without a table                  899; 1361, 1514, 1812    8988; 9676, 10101, 11147  18085; 24541, 26779, 30493
reading all of table and weight       119; 157, 174, 195       120; 153, 173, 216        133; 156, 179, 221
checksum of all of table and weight   577; 681, 838, 903       575; 635, 741, 860        550; 807, 876, 963
====================================  =======================  ========================  =============================

A checksum would add 0.3 to 1.6 times the call's time for a single review. It grows with the vocabulary: 20 times for
200,000 words, which no cache holds. The promise costs nothing and is one rule for all devices.

Nothing is kept for tensors made in inference mode, which count no changes; in the capture of a CUDA graph, whose
replays would read what may be gone; in compiled graphs on a GPU, whose memory is the graph's; for weights that an
optimizer changes in a captured graph; nor under ``torch.use_deterministic_algorithms``, as the last bits of a result
may depend on whether the table was there. Where the tables exceed the memory that they may take, the least recently
used one is freed; a table is also freed with the tensors that it was made of.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from seqconv.functional.floors import floor
from seqconv.kernels import plans
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.plans import Plan
from seqconv.kernels.source import Source, Tokens
from seqconv.kernels.triton.launch import kind_of

__all__ = [
    "VARIABLE",
    "clear_cache",
    "find_or_fold",
    "forward",
    "frozen",
    "is_any_frozen",
    "is_frozen",
    "is_kept",
    "limit",
    "may_keep",
    "plan",
    "uncounted_steps",
]

VARIABLE = "SEQCONV_FOLDED_MIB"
DEFAULT_MIB = 512

# Greatest number of tables whose savings are added up: more than a process has models.
WATCHED = 256

Key = tuple[Any, ...]


class Saved(NamedTuple):
    """What a folded table would have saved so far, for the present versions of table and weight."""

    versions: tuple[int, int]
    operations: int


class Kept(NamedTuple):
    """A folded table and what it was made of."""

    folded: Tensor
    versions: tuple[int, int]
    ready: torch.cuda.Event | None


class Promised(NamedTuple):
    """A storage under a promise: who has given it, and the finalizer that forgets the storage when it is freed."""

    promises: set[frozen]
    finalizer: weakref.finalize[Any, Any]


_kept: OrderedDict[Key, Kept] = OrderedDict()
_saved: OrderedDict[Key, Saved] = OrderedDict()
_promised: dict[int, Promised] = {}  # by the storages' addresses
# The weights that captured graphs change, by their storages.
_replayed: dict[int, StorageWeakRef] = {}
_lock = threading.RLock()  # a finalizer may run wherever it is held


class frozen:  # a context manager, as torch.no_grad
    """Promise that a model's parameters stay as they are, so that calls without gradients keep their folded tables.

    ``model`` is a module, or a list of tensors for :mod:`seqconv.functional`. The promise holds until :meth:`end`, the
    end of a ``with`` block or the end of the tensors; then the folded tables are freed. It holds for the parameters'
    present memory: parameters that are replaced afterwards, as by ``.to()``, are not under it.

    It says that nothing writes into the parameters unseen by torch: through ``.data``, a NumPy view, a kernel of one's
    own or the replay of a CUDA graph. If something does, results are those of the old numbers, without an error, until
    :func:`clear_cache`. Changes that torch counts are noticed all the same: steps of its optimizers,
    ``load_state_dict`` and in-place operations under ``torch.no_grad``. For a table of 10,000 words and the layer of
    the IMDB convnet a call took 3 times less on the CPU for one review, 6 for 32 and 2 to 3 for 128. Without the
    promise each call folds anew, or not at all.

    Raises ``TypeError`` for anything but a module or tensors.
    """

    def __init__(self, model: nn.Module | Iterable[Tensor]) -> None:
        self._held: list[tuple[int, Promised]] = []
        tensors = list(model.parameters() if isinstance(model, nn.Module) else _tensors(model))
        for storage in (one.untyped_storage() for one in tensors if type(one) in (Tensor, nn.Parameter)):
            address = storage._cdata
            with _lock:
                if address not in _promised:
                    finalizer = weakref.finalize(storage, _forget_storage, address)
                    finalizer.atexit = False
                    _promised[address] = Promised(set(), finalizer)
                _promised[address].promises.add(self)
                self._held.append((address, _promised[address]))

    def end(self) -> None:
        """End the promise; a second call does nothing."""
        with _lock:
            while self._held:
                address, promised = self._held.pop()
                promised.promises.discard(self)
                # The storage may be gone, and another one at its address.
                if not promised.promises and _promised.get(address) is promised:
                    promised.finalizer.detach()
                    _forget_storage(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def clear_cache() -> None:
    """Free all folded tables that are kept; later calls make them again where that pays.

    Needed after weights that are :class:`frozen` were written unseen by torch: results are then those of the new
    numbers.
    """
    with _lock:
        _kept.clear()
        _saved.clear()


def is_frozen(*tensors: Tensor) -> bool:
    """Tell whether all tensors are promised to stay as they are."""
    return all(one.untyped_storage()._cdata in _promised for one in tensors)


def is_any_frozen() -> bool:
    """Tell whether any tensor at all is promised to stay as it is."""
    return bool(_promised)


def _tensors(given: Any) -> list[Tensor]:
    try:
        found = [] if isinstance(given, Tensor) else list(given)
    except TypeError:
        found = []
    if not found or not all(isinstance(one, Tensor) for one in found):
        raise TypeError(f"model must be a module or a list of tensors, got {type(given).__name__}")
    return found


def _forget_storage(address: int) -> None:
    with _lock:
        _promised.pop(address, None)
        _drop({address})


def _drop(addresses: set[int]) -> None:
    """Free the tables that were made of these storages, and the savings counted for them."""
    for known in (_kept, _saved):
        for key in [one for one in list(known) if not addresses.isdisjoint(one[:2])]:
            known.pop(key, None)


def forward(
    backend: str,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Run the kernel without gradients, from a folded table where one is kept, or if asked for one of ``dtype``."""
    options: dict[str, Tensor] = {}
    if _promised and isinstance(source, Tokens):
        folded = find_or_fold(backend, source.tokens, source.values, weight, convolution, dtype)
        options = {} if folded is None else {"folded": folded}
    output: Tensor
    output, _ = floor(backend).forward(source, weight, bias, convolution, pool, want_argmax=False, **options)
    return output


def plan(
    backend: str, tokens: Tensor, table: Tensor, weight: Tensor, convolution: Convolution, *, ready: bool, rows: int
) -> Plan:
    """Return the plan of a call that uses ``rows`` rows of the table; on a GPU, pass the number of all rows."""
    outputs, channels, size = weight.shape
    counts = (tokens.size(0), convolution.output_length(tokens.size(1), size))
    used = table.size(0) if backend == "triton" else rows
    return plans.forward_plan(_costs(backend, table), *counts, used, channels, outputs, size, ready=ready)


def _fold_operations(backend: str, table: Tensor, weight: Tensor) -> int:
    """Return what it costs to fold a whole table, in multiply-adds."""
    outputs, channels, size = weight.shape
    return plans.fold_operations(_costs(backend, table), table.size(0), channels, outputs, size)


def _costs(backend: str, table: Tensor) -> plans.Costs:
    return plans.GPU[kind_of(table.dtype)] if backend == "triton" else plans.CPU


def is_kept(backend: str, table: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tell whether the folded table is there, in ``dtype`` unless that is ``None``."""
    identity = _identify(backend, table, weight, dtype)
    return identity is not None and _find(*identity) is not None


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
    """Return the folded table if it is kept, or worth making now; one of another ``dtype`` always is.

    A table of another dtype gives other results. So that these do not change from call to call, it is made at the first
    call or, where none can be kept, never.
    """
    if table.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    identity = _identify(backend, table, weight, dtype)
    if identity is None:
        return None
    kept = _find(*identity)
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
    saving, cost = min(unready.values()) - additions, _fold_operations(backend, table, weight)
    with _lock:
        before = _saved.pop(key, None)
        saved = before.operations if before is not None and before.versions == versions else 0
        saved += max(saving, 0)
        _saved[key] = Saved(versions, saved)
        if len(_saved) > WATCHED:
            _saved.popitem(last=False)
        # Nothing is folded in the first call: many tables are used only once.
        if saving <= 0 or saved - saving < cost:
            return None
        _saved.pop(key, None)  # a table that was freed for another must save its cost again
    return _fold(backend, key, versions, table, weight)


def may_keep(backend: str, table: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tell whether the folded table may be kept: it is not too large, and its sources are frozen."""
    kept = dtype or torch.promote_types(table.dtype, torch.float32)  # no narrower unless asked for
    size = math.prod(floor(backend).folded_shape(table.size(0), weight, dtype)) * kept.itemsize
    return _identify(backend, table, weight, dtype) is not None and size <= limit()


def _fold(
    backend: str,
    key: Key,
    versions: tuple[int, int],
    table: Tensor,
    weight: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    if not may_keep(backend, table, weight, dtype):
        return None
    most = limit()
    with torch.no_grad():
        folded: Tensor = floor(backend).fold(table, weight, dtype=dtype)
    ready = None
    if table.is_cuda:
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(table.device))
    with _lock:
        if (table._version, weight._version) != versions or not is_frozen(table, weight):
            return None  # another thread changed them, or ended the promise
        _kept[key] = Kept(folded, versions, ready)
        while sum(kept.folded.nbytes for kept in _kept.values()) > most:
            _kept.popitem(last=False)
    return folded


def _identify(
    backend: str, table: Tensor, weight: Tensor, dtype: torch.dtype | None
) -> tuple[Key, tuple[int, int]] | None:
    """Return what identifies table and weight, and their version counters; ``None`` if nothing may be kept."""
    if not _promised:
        return None
    addresses = table.untyped_storage()._cdata, weight.untyped_storage()._cdata
    if not all(one in _promised for one in addresses) or table.is_inference() or weight.is_inference():
        return None
    if dtype is None and torch.are_deterministic_algorithms_enabled():
        return None  # the result would depend on the calls before
    if _replayed and any(_is_replayed(one) for one in (table, weight)):
        return None
    key = (
        *addresses,
        backend,
        table.storage_offset(),
        table.shape,
        table.stride(),
        weight.storage_offset(),
        weight.shape,
        weight.stride(),
        table.dtype,
        dtype,
    )
    return key, (table._version, weight._version)


def _find(key: Key, versions: tuple[int, int]) -> Kept | None:
    """Return what is kept if it is still valid; drop it if not."""
    with _lock:
        kept = _kept.get(key)
        if kept is None:
            return None
        if kept.versions != versions:
            del _kept[key]
            return None
        _kept.move_to_end(key)
    return kept


def _is_replayed(tensor: Tensor) -> bool:
    owner = _replayed.get(tensor.untyped_storage()._cdata)
    return owner is not None and not owner.expired()


_uncounted = 0


def uncounted_steps() -> int:
    """Return how many steps optimizers have made whose writes torch does not count."""
    return _uncounted


def _stepped(optimizer: torch.optim.Optimizer, _arguments: Any, _options: Any) -> None:
    """Notice changes by an optimizer that torch does not count: those of a fused step, or of a graph's replays."""
    is_captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    if not is_captured and not any(group.get("fused") for group in optimizer.param_groups):
        return
    global _uncounted
    _uncounted += 1
    storages = [one.untyped_storage() for group in optimizer.param_groups for one in group["params"]]
    changed = {one._cdata for one in storages}
    with _lock:
        if is_captured:
            _replayed.update({one._cdata: StorageWeakRef(one) for one in storages})
        _drop(changed)


register_optimizer_step_post_hook(_stepped)


def _forget() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # another thread of the parent may have held it
