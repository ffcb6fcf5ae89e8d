"""How threads share the parts of a kernel call: as many threads as torch uses, safe wherever torch is safe.

Compiled code gets its threads from the OpenMP library that torch itself runs on (:func:`share`). They are torch's own
threads, still awake where torch has just worked, and starting them costs a microsecond. Numba's own threading layers
are not used: they abort the process when two threads call in (workqueue) or hang in a forked child (omp). OpenMP does
not survive a fork either, and on some systems it lacks the entry point: there, plain Python threads take the parts
(:func:`run`).
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ...forks import is_child
from .compilation import intrinsic

__all__ = ["run", "share", "thread_count"]

# Multiply-adds that one core of a Zen 4 does in the few microseconds that a second thread costs.
WORTH_A_THREAD = 500_000

# Most Python threads; further work waits.
MOST_THREADS = 1024


def thread_count(parts: int, multiply_adds: int) -> int:
    """Return the number of threads, at least 1, for ``multiply_adds`` of work that is cut into ``parts``."""
    return max(1, min(torch.get_num_threads(), parts, multiply_adds // WORTH_A_THREAD))


def run(kernel: Callable[[int, int, int, int], None], parts: int, threads: int) -> None:
    """Have ``kernel(begin, end, threads, launch)`` do the parts 0 to ``parts``; return when all are done.

    ``kernel`` passes its arguments on to :func:`share`. Raises what the first call that failed raised. ``kernel`` must
    not call ``run``: it could wait for its own thread.
    """
    launch = _launch
    if threads == 1 or launch:
        kernel(0, parts, threads, launch)
        return
    shares = [(parts * i // threads, parts * (i + 1) // threads) for i in range(threads)]
    others: list[Future[None]] = []
    try:
        for share in shares[1:]:
            others.append(_helpers().submit(kernel, *share, 1, 0))
        kernel(*shares[0], 1, 0)
    finally:
        # The memory that they use must not be freed before they are done, whatever was raised here.
        errors = [other.exception() for other in others]
    for error in errors:
        if error is not None:
            raise error


@intrinsic
def share(_typing: Any, begin: Any, end: Any, threads: Any, launch: Any, work: Any, arguments: Any) -> Any:
    """Call ``work(part, *arguments)`` for the parts ``begin`` to ``end``.

    Every thread has neighbouring parts of its own, the same ones in calls of the same number of parts: what it wrote in
    one call may still be in its caches in the next. When it has none left it takes those of others.

    ``work`` is a compiled function without a result, ``arguments`` a tuple. ``launch`` is the address of the addresses
    of OpenMP's ``GOMP_parallel`` and ``omp_get_thread_num``, 0 for the calling thread alone. Raises ``MemoryError``
    where ``work`` raised anything: nothing else can go wrong in a kernel.
    """
    form = work.get_call_type(_typing, (types.int64, *arguments.types), {})

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        compiled = work.dispatcher.overloads[form.args]
        context.add_linking_libs([compiled.library])
        number, byte, flag = ir.IntType(64), ir.IntType(8).as_pointer(), ir.IntType(8)
        begin, end, threads, launch = values[:4]
        none, one = (ir.Constant(number, i) for i in (0, 1))
        has_others = builder.icmp_signed("!=", launch, none)
        shares = builder.select(has_others, threads, one)
        # Of each share the next part and the end.
        bounds = builder.alloca(ir.ArrayType(number, 2), shares)
        with cgutils.for_range(builder, shares) as loop:
            for i, which in enumerate((loop.index, builder.add(loop.index, one))):
                ahead = builder.sdiv(builder.mul(builder.sub(end, begin), which), shares)
                builder.store(builder.add(begin, ahead), cgutils.gep_inbounds(builder, bounds, loop.index, i))
        call = ir.LiteralStructType([bounds.type, number, number, flag, values[5].type])
        place = cgutils.alloca_once(builder, call)
        for i, value in enumerate((bounds, shares, launch, ir.Constant(flag, 0), values[5])):
            builder.store(value, cgutils.gep_inbounds(builder, place, 0, i))
        participant = _participant(context, builder.module, call, compiled.fndesc)
        data = builder.bitcast(place, byte)
        with builder.if_else(has_others) as (many, alone):
            with many:
                kind = ir.FunctionType(ir.VoidType(), [participant.type, byte, ir.IntType(32), ir.IntType(32)])
                start = builder.inttoptr(_entry(builder, launch, 0), kind.as_pointer())
                count = builder.trunc(threads, ir.IntType(32))
                builder.call(start, [participant, data, count, ir.Constant(ir.IntType(32), 0)])
            with alone:
                builder.call(participant, [data])
        failed = builder.load(cgutils.gep_inbounds(builder, place, 0, 3))
        with builder.if_then(builder.icmp_signed("!=", failed, ir.Constant(flag, 0)), likely=False):
            context.call_conv.return_user_exc(builder, MemoryError, ("a kernel's scratch memory",))
        return context.get_dummy_value()

    integer = types.int64
    return types.void(integer, integer, integer, integer, work, arguments), generate


def _participant(context: Any, module: Any, call: Any, kernel: Any) -> Any:
    """Return the function that every thread runs: it takes the next part of its share, then of the others'."""
    byte, number, short = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte]), module.get_unique_name("participant"))
    function.linkage = "internal"
    names = ("begin", "several", "share", "next", "work", "over", "done")
    begin, several, share, loop, work, over, done = (function.append_basic_block(name) for name in names)
    builder = ir.IRBuilder(begin)
    none, one = (ir.Constant(number, i) for i in (0, 1))
    place = builder.bitcast(function.args[0], call.as_pointer())
    bounds, shares, launch, arguments = (builder.load(cgutils.gep_inbounds(builder, place, 0, i)) for i in (0, 1, 2, 4))
    failed = cgutils.gep_inbounds(builder, place, 0, 3)
    given = [builder.extract_value(arguments, i) for i in range(len(arguments.type.elements))]
    builder.cbranch(builder.icmp_signed("!=", launch, none), several, share)
    builder.position_at_end(several)
    ask = builder.inttoptr(_entry(builder, launch, 1), ir.FunctionType(short, []).as_pointer())
    own = builder.zext(builder.call(ask, []), number)
    builder.branch(share)
    builder.position_at_end(share)
    first, taken = builder.phi(number), builder.phi(number)
    following = builder.gep(bounds, [builder.srem(builder.add(first, taken), shares), ir.Constant(short, 0)])
    end = builder.load(builder.gep(following, [ir.Constant(short, 1)]))
    builder.branch(loop)
    builder.position_at_end(loop)
    part = builder.atomic_rmw("add", following, one, "monotonic")
    builder.cbranch(builder.icmp_signed("<", part, end), work, over)
    builder.position_at_end(over)
    others = builder.add(taken, one)
    for node, values in ((first, (none, own, first)), (taken, (none, none, others))):
        for value, block in zip(values, (begin, several, over), strict=True):
            node.add_incoming(value, block)
    builder.cbranch(builder.icmp_signed("<", others, shares), share, done)
    builder.position_at_end(work)
    declared = context.declare_function(module, kernel)
    status, _ = context.call_conv.call_function(builder, declared, kernel.restype, kernel.argtypes, [part, *given])
    with builder.if_then(status.is_error, likely=False):
        builder.store(ir.Constant(ir.IntType(8), 1), failed)
    builder.branch(loop)
    builder.position_at_end(done)
    builder.ret_void()
    return function


def _entry(builder: Any, launch: Any, i: int) -> Any:
    """Return one of the addresses at ``launch``."""
    entries = builder.inttoptr(launch, launch.type.as_pointer())
    return builder.load(builder.gep(entries, [ir.Constant(launch.type, i)]))


def _find_launch() -> int:
    """Return the address of what :func:`share` calls in the OpenMP library that torch runs on; 0 where it is not there.

    torch may have used OpenMP in the process that this one was forked from, even if no kernel has run there.
    """
    if is_child():
        return 0
    try:
        library = ctypes.CDLL(torch._C.__file__)  # a library's handle finds what it depends on, too
        found = [ctypes.cast(one, ctypes.c_void_p).value for one in (library.GOMP_parallel, library.omp_get_thread_num)]
    except (AttributeError, OSError, TypeError):
        return 0
    _entries[:] = [one or 0 for one in found]
    return ctypes.addressof(_entries)


_entries = (ctypes.c_int64 * 2)()
_launch = _find_launch()
_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None


def _helpers() -> ThreadPoolExecutor:
    """Return the process's helper threads: one is added when none is idle, so that several callers do not wait."""
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="seqconv")
        return _executor


def _forget() -> None:
    """Forget the parent's threads in a forked child: it has none of them, and OpenMP would wait for them for ever."""
    global _lock, _executor, _launch
    _lock, _executor, _launch = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
