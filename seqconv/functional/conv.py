"""The fused conv stack as functions: convolution, bias, ReLU and maximum pooling, on a tensor or on gathered rows.

Letters in the shapes: ``N`` samples, ``C`` input and ``O`` output channels, ``L`` positions, ``K`` kernel size, ``Q``
pooled positions, ``V`` rows of a table. Every function checks its arguments, lets :mod:`seqconv.backends` choose a
kernel and is differentiable with respect to every floating-point tensor. All tensors share one floating dtype and one
device. Errors: ``ValueError`` for a wrong shape, device, value or backend name, ``TypeError`` for a wrong type or
dtype, ``IndexError`` for a row that the table does not have, :class:`~seqconv.backends.BackendError` where a backend
asked for by name cannot serve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional import arguments, remembered
from seqconv.functional.arguments import IntOrTuple
from seqconv.functional.kernels import is_own, register
from seqconv.functional.recent import Recent, recent_of
from seqconv.functional.tracing import Proxy, TracedCall
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.source import Dense, Tokens, Windows, name_of

__all__ = [
    "conv1d_relu_global_max_pool1d",
    "conv1d_relu_max_pool1d",
    "embedding_conv1d_relu_global_max_pool1d",
    "embedding_conv1d_relu_max_pool1d",
    "window_conv1d_relu_global_max_pool1d",
    "window_conv1d_relu_max_pool1d",
]


def conv1d_relu_max_pool1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pool_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    pool_stride: IntOrTuple | None = None,
    pool_padding: IntOrTuple = 0,
    pool_dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``F.max_pool1d(F.relu(F.conv1d(input, weight, bias, ...)), pool_size, ...)``.

    Shapes: ``input`` ``(N, C, L)`` or ``(C, L)``, ``weight`` ``(O, C / groups, K)``, ``bias`` ``(O,)``; the result is
    ``(N, O, Q)`` or ``(O, Q)``. ``memory_format=torch.preserve_format`` keeps the memory format: a channels-last input,
    ``(N, L, C)`` seen through ``.transpose(1, 2)``, gives a channels-last result, any other input a contiguous one.
    With ``torch.contiguous_format`` every result is contiguous, as that of torch's functions is, for what depends on
    it: ``.view(n, -1)``, the mask that a dropout draws.

    ``lengths``, integers ``(N,)`` or ``()``, cut samples off: row ``n`` is the result of the first ``lengths[n]``
    positions alone, then zeros. Positions behind these have no effect and get no gradient. A sample that is too short
    for one output position gives zeros.

    The arguments are those of :func:`torch.nn.functional.conv1d`, and behind ``pool_`` those of
    :func:`torch.nn.functional.max_pool1d`; ``pool_stride=None`` means ``pool_size``. ``backend`` is ``"auto"``,
    ``"triton"``, ``"numba"`` or ``"reference"``.
    """
    convolution = (stride, padding, dilation, groups)
    pool = (pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, memory_format)
    return run(conv_call, (input, lengths, weight, bias), (convolution, pool), backend)


def conv1d_relu_global_max_pool1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``F.relu(F.conv1d(input, weight, bias, ...)).max(dim=-1).values``.

    Shapes and ``lengths``: as in :func:`conv1d_relu_max_pool1d`; the result is ``(N, O)`` or ``(O,)``. Of equal values
    the first one gets the gradient.
    """
    return run(conv_call, (input, lengths, weight, bias), ((stride, padding, dilation, groups), None), backend)


def embedding_conv1d_relu_max_pool1d(
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pool_size: IntOrTuple,
    padding_idx: int | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    pool_stride: IntOrTuple | None = None,
    pool_padding: IntOrTuple = 0,
    pool_dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    folded_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return :func:`conv1d_relu_max_pool1d` of ``F.embedding(tokens, table, padding_idx).transpose(-1, -2)``.

    Shapes: ``tokens`` ``(N, L)`` or ``(L,)``, int32 or int64, ``table`` ``(V, C)``, ``weight`` ``(O, C / groups, K)``;
    the result is ``(N, O, Q)`` or ``(O, Q)``, channels-last unless ``memory_format`` is ``torch.contiguous_format``.
    Row ``padding_idx`` is read like any other and gets no gradient: what is padded in front, or behind without
    ``lengths``, takes part in the maximum.

    Calls without gradients keep the folded table, the products of table and weight, where :class:`seqconv.frozen`
    promises that both stay as they are. For float32 tables, ``folded_dtype`` ``torch.float16`` or ``torch.bfloat16``
    keeps it in that dtype, from the first such call on: that takes half the memory and is faster on the CPU. Sums and
    result stay float32. With ``F[v, k, o] = sum_c table[v, c] * weight[o, c, k]``, a result differs from that of
    ``None`` by no more than the maximum over its window's positions ``t`` of ``u * sum_k |F[tokens[t + k], k, o]|``
    (tokens ``t * stride + k * dilation``, in general), but for float32's own rounding; ``u`` is half of
    ``torch.finfo(folded_dtype).eps``, ``2**-8`` or in float16 ``2**-11``. float16 adds ``K * 2**-25``, and has no
    numbers above 65504: what is greater in ``F`` becomes infinite. Without that promise, with gradients, on backends
    that fold nothing, in a compiled or captured graph on a GPU, and where ``SEQCONV_FOLDED_MIB`` leaves no room, it has
    no effect.
    """
    convolution = (stride, padding, dilation, groups)
    pool = (pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, memory_format)
    options = (padding_idx, convolution, pool, folded_dtype)
    return run(embedding_call, (tokens, table, lengths, weight, bias), options, backend)


def embedding_conv1d_relu_global_max_pool1d(
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding_idx: int | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    folded_dtype: torch.dtype | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return :func:`conv1d_relu_global_max_pool1d` of ``F.embedding(tokens, table, padding_idx).transpose(-1, -2)``.

    Shapes and ``folded_dtype``: as in :func:`embedding_conv1d_relu_max_pool1d`; the result is ``(N, O)`` or ``(O,)``.
    """
    options = (padding_idx, (stride, padding, dilation, groups), None, folded_dtype)
    return run(embedding_call, (tokens, table, lengths, weight, bias), options, backend)


def window_conv1d_relu_max_pool1d(
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    length: int,
    step: int = 1,
    pool_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    pool_stride: IntOrTuple | None = None,
    pool_padding: IntOrTuple = 0,
    pool_dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return :func:`conv1d_relu_max_pool1d` of the windows that start at the rows ``starts`` of ``series``.

    Window ``n`` holds the ``length`` rows ``starts[n], starts[n] + step, ...``: in torch,
    ``series[starts[:, None] + step * torch.arange(length)].transpose(1, 2)``. Shapes: ``series`` ``(V, C)``, ``starts``
    ``(N,)``, int32 or int64, ``weight`` ``(O, C / groups, K)``; the result is ``(N, O, Q)``, channels-last unless
    ``memory_format`` is ``torch.contiguous_format``.
    """
    convolution = (stride, padding, dilation, groups)
    pool = (pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, memory_format)
    return run(window_call, (series, starts, lengths, weight, bias), (length, step, convolution, pool), backend)


def window_conv1d_relu_global_max_pool1d(
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    length: int,
    step: int = 1,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return :func:`conv1d_relu_global_max_pool1d` of the windows that start at the rows ``starts`` of ``series``.

    Shapes: as in :func:`window_conv1d_relu_max_pool1d`; the result is ``(N, O)``.
    """
    options = (length, step, (stride, padding, dilation, groups), None)
    return run(window_call, (series, starts, lengths, weight, bias), options, backend)


Geometry = tuple[Convolution, Pool | None]


class Call(NamedTuple):
    """A checked call, ready for whichever kernel is chosen: kernels take ``arguments`` and know no unbatched input.

    Kernels of operations that fold a table are given ``folded_dtype`` as a keyword unless it is ``None``.
    """

    operation: str
    arguments: tuple[Any, ...]
    batched: bool = True
    folded_dtype: torch.dtype | None = None

    def run(self, backend: str) -> Tensor:
        """Run the kernel that serves the call."""
        return self.run_on(backends.choose(self.operation, backend, self.arguments))

    def run_on(self, kernel: backends.Kernel) -> Tensor:
        """Run a kernel."""
        output: Tensor
        if self.folded_dtype is None:
            output = kernel(*self.arguments)
        else:
            output = kernel(*self.arguments, folded_dtype=self.folded_dtype)
        return output if self.batched else output.squeeze(0)

    def explain(self, backend: str) -> backends.Explanation:
        """Return which backend would serve the call, and why."""
        keywords = {} if self.folded_dtype is None else {"folded_dtype": self.folded_dtype}
        return backends.explain_call(self.operation, backend, self.arguments, **keywords)


def run(
    prepare: Callable[..., Call],
    operands: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    backend: str,
    recent: Recent | None = None,
) -> Tensor:
    """Run the call that ``prepare(*operands, *options)`` returns, as it was remembered if it was run before.

    ``recent`` are calls of the same ``prepare``, options and backend.
    """
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling:
        recent = recent or recent_of(prepare, backend, *options)
        if recent is not None and (known := recent.find(operands)) is not None:
            return known(*operands)
    key = None if is_compiling else remembered.key_of(prepare, operands, options, backend)
    if key is None:
        return prepare(*operands, *options).run(backend)
    if (known := remembered.find(key)) is not None:
        if recent is not None:
            recent.add(operands, known)
        return known(*operands)
    call = prepare(*operands, *options)
    chosen, kernel = backends.choose_named(call.operation, backend, call.arguments)
    output = call.run_on(kernel)
    if call.batched and is_own(kernel):
        remembered.remember(key, chosen, call.arguments, call.folded_dtype)
    return output


def conv_call(
    input: Tensor,
    lengths: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
) -> Call:
    """Check a call of the conv stack on a tensor; ``pool`` is ``None`` for the global maximum."""
    if isinstance(input, Proxy):
        functions = conv1d_relu_global_max_pool1d, conv1d_relu_max_pool1d
        return _traced(functions, (input, weight, bias), convolution, pool, lengths=lengths)
    arguments.tensor("input", input)
    if input.dim() not in (2, 3):
        raise ValueError(f"input must have shape (N, C, L) or (C, L), got {tuple(input.shape)}")
    batched = input.dim() == 3
    if not batched:
        input = input.unsqueeze(0)
    samples, channels, length = input.shape
    if length < 1:
        arguments.positions("input", samples, length)
    geometry = _geometry("input", input, channels, length, weight, bias, convolution, pool)
    cut = None if lengths is None else arguments.lengths(lengths, input.device, samples, length, batched)
    return Call(name_of(Dense, pool), (Dense(input, cut), weight, bias, *geometry), batched)


def embedding_call(
    tokens: Tensor,
    table: Tensor,
    lengths: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    padding_idx: int | None,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
    folded_dtype: torch.dtype | None = None,
    *,
    is_known: bool = False,
) -> Call:
    """Check a call of the conv stack on embedded tokens; ``pool`` is ``None`` for the global maximum.

    ``is_known`` tells that tokens and table were checked together before.
    """
    if isinstance(tokens, Proxy) or isinstance(table, Proxy):
        functions = embedding_conv1d_relu_global_max_pool1d, embedding_conv1d_relu_max_pool1d
        rest = {"padding_idx": padding_idx, "folded_dtype": folded_dtype, "lengths": lengths}
        return _traced(functions, (tokens, table, weight, bias), convolution, pool, **rest)
    arguments.tensor("tokens", tokens)
    arguments.tensor("table", table)
    if tokens.dim() not in (1, 2):
        raise ValueError(f"tokens must have shape (N, L) or (L,), got {tuple(tokens.shape)}")
    if not is_known:
        arguments.row_index("tokens", tokens, "table", table)
    rows, channels = table.shape
    if padding_idx is not None:
        padding_idx = arguments.row("padding_idx", padding_idx, rows)
    batched = tokens.dim() == 2
    if not batched:
        tokens = tokens.unsqueeze(0)
    if tokens.size(1) < 1:
        arguments.positions("tokens", *tokens.shape)
    geometry = _geometry("table", table, channels, tokens.size(1), weight, bias, convolution, pool)
    kept = None if folded_dtype is None else arguments.folded_dtype(folded_dtype, table.dtype)
    samples, length = tokens.shape
    cut = None if lengths is None else arguments.lengths(lengths, table.device, samples, length, batched)
    given = Tokens(tokens, table, padding_idx, cut), weight, bias, *geometry
    return Call(name_of(Tokens, pool), given, batched, kept)


def window_call(
    series: Tensor,
    starts: Tensor,
    lengths: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    length: int,
    step: int,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
) -> Call:
    """Check a call of the conv stack on windows of a series; ``pool`` is ``None`` for the global maximum."""
    if isinstance(series, Proxy) or isinstance(starts, Proxy):
        functions = window_conv1d_relu_global_max_pool1d, window_conv1d_relu_max_pool1d
        rest = {"length": length, "step": step, "lengths": lengths}
        return _traced(functions, (series, starts, weight, bias), convolution, pool, **rest)
    arguments.tensor("series", series)
    arguments.tensor("starts", starts)
    if starts.dim() != 1:
        raise ValueError(f"starts must have shape (N,), got {tuple(starts.shape)}")
    length, step = arguments.integer("length", length, 1), arguments.integer("step", step, 1)
    arguments.row_index("starts", starts, "series", series, reach=(length - 1) * step)
    geometry = _geometry("series", series, series.size(1), length, weight, bias, convolution, pool)
    cut = None if lengths is None else arguments.lengths(lengths, series.device, starts.size(0), length)
    given = Windows(series, starts, length, step, cut), weight, bias, *geometry
    return Call(name_of(Windows, pool), given)


def _traced(
    functions: tuple[Any, Any],
    given: tuple[Any, ...],
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
    **rest: Any,
) -> Call:
    """Return a call that is recorded: of the first function for a global maximum, of the second for a pool."""
    options = dict(zip(("stride", "padding", "dilation", "groups"), convolution, strict=True), **rest)
    if pool is not None:
        options |= dict(zip(arguments.POOL_OPTIONS, pool, strict=True))
    over_all, pooled = functions
    traced: Any = TracedCall(over_all if pool is None else pooled, given, options)
    return traced  # type: ignore[no-any-return]


def _geometry(
    source_name: str,
    source: Tensor,
    channels: int,
    length: int,
    weight: Tensor,
    bias: Tensor | None,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
) -> Geometry:
    arguments.operands(source_name, source, weight, bias)
    shapes = (source_name, source.shape, channels, length, weight.shape, None if bias is None else bias.shape)
    options = (*convolution, *(pool or ()))
    if not torch.compiler.is_compiling():
        # Types matter: a look-up takes 1.0 for 1 inside a tuple.
        groups = options[3]  # the one option that torch takes as a plain integer alone
        plain = [
            one[0] if type(one) is tuple and len(one) == 1 and type(one[0]) is int and one is not groups else one
            for one in options
        ]
        try:
            if tuple not in map(type, plain):
                return _remembered(*shapes, *plain)
        except TypeError:  # a list, which is not hashable, or a wrong type, which the check below reports
            pass
    return _check(*shapes, *options)


def _check(
    source_name: str,
    source: tuple[int, ...],
    channels: int,
    length: int,
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int,
    *pool: Any,
) -> Geometry:
    checked = arguments.convolution(
        source_name, source, channels, length, weight, bias, stride, padding, dilation, groups
    )
    return checked, arguments.pool(checked.output_length(length, weight[2]), *pool) if pool else None


# A model calls with the same few shapes again and again.
_remembered = lru_cache(maxsize=1024, typed=True)(_check)


register()
