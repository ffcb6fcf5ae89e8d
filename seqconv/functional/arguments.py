"""Checks of what callers pass: each error names the argument, its value and what it may be."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from seqconv.functional.following import is_watched
from seqconv.kernels.geometry import Convolution, Pool

__all__ = [
    "POOL_OPTIONS",
    "IntOrTuple",
    "contiguous",
    "convolution",
    "flag",
    "floating",
    "folded_dtype",
    "integer",
    "number",
    "operands",
    "pool",
    "positions",
    "probability",
    "row",
    "row_index",
    "single",
    "tensor",
]

IntOrTuple = int | tuple[int, ...]

MOST = 2**48

# A pool's options travel as a plain tuple in this order, from the layers and functions to :func:`pool`.
POOL_OPTIONS = ("pool_size", "pool_stride", "pool_padding", "pool_dilation", "ceil_mode", "memory_format")

UNSTRIDED = frozenset(
    {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc, torch.jagged}
)

FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def tensor(name: str, value: Any) -> None:
    """Raise ``TypeError`` if ``value`` is no tensor, or a sparse or nested one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout in UNSTRIDED:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout}")


def floating(name: str, value: Tensor) -> None:
    """Raise ``TypeError`` for a dtype that no kernel takes."""
    if value.dtype not in FLOATING:
        hint = " (nothing here is quantised: put a torch.ao.quantization.DeQuantStub in front)" * value.is_quantized
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}{hint}")


def folded_dtype(value: Any, table: torch.dtype | None = None) -> torch.dtype | None:
    """Return ``value`` if it is ``None`` or a dtype that the folded table of a ``table`` of float32 may have.

    Raises ``TypeError`` for what is no dtype or where ``table``, the table's dtype if known, has no such folded table,
    ``ValueError`` for another dtype.
    """
    if value is None:
        return None
    allowed = "None, torch.float16 or torch.bfloat16"
    if not isinstance(value, torch.dtype):
        raise TypeError(f"folded_dtype must be {allowed}, got {value!r}")
    if value not in (torch.float16, torch.bfloat16):
        raise ValueError(f"folded_dtype must be {allowed}, got {value}")
    if table not in (None, torch.float32):
        raise TypeError(f"folded_dtype must be None unless the table is torch.float32, which is {table}; got {value}")
    return value


def contiguous(value: Any) -> bool:
    """Tell which of the memory formats that a result may have ``value`` is."""
    allowed = "torch.preserve_format or torch.contiguous_format"
    if not isinstance(value, torch.memory_format):
        raise TypeError(f"memory_format must be {allowed}, got {value!r}")
    if value not in (torch.preserve_format, torch.contiguous_format):
        raise ValueError(f"memory_format must be {allowed} (others are of images), got {value}")
    return bool(value == torch.contiguous_format)


def integer(name: str, value: Any, least: int) -> int:
    """Return ``value``, an integer of Python, NumPy or torch, if it is at least ``least``.

    Raises ``TypeError`` for what is no integer and ``ValueError`` for one that is too small, or larger than any memory.
    """
    # A symbolic size stays one, so that torch.compile can trace it.
    if type(value) is not int and not isinstance(value, torch.SymInt):
        if isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if type(value) is int and value > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {value}")
    return value  # type: ignore[no-any-return]


def single(name: str, value: Any, least: int) -> int:
    """Return what :func:`integer` does, also for a tuple or list of one: torch's sizes along one axis."""
    if type(value) is not int and isinstance(value, (tuple, list)):
        if len(value) != 1:
            raise ValueError(f"{name} must be one integer, got {value!r}")
        value = value[0]
    return integer(name, value, least)


def number(name: str, value: Any, least: float | None = None) -> float:
    """Return ``value`` if it is a number, which ``True`` is not, and at least ``least``.

    Raises ``TypeError`` for what is no number and ``ValueError`` for one that is too small, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if least is not None and not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value  # type: ignore[return-value]


def probability(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a number, NumPy's too, in [0, 1]; else raise as :func:`number` does."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    found = float(value)
    if not 0 <= found <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return found


def flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is ``True`` or ``False``, else raise ``TypeError``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def operands(source_name: str, source: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check that a convolution's operands are tensors of one floating dtype on one device."""
    dtype, device = source.dtype, source.device
    if dtype not in FLOATING:
        floating(source_name, source)
    for name, one in (("weight", weight), ("bias", bias)):
        if one is None and name == "bias":
            continue
        if isinstance(one, Tensor) and one.dtype == dtype and one.device == device and one.layout not in UNSTRIDED:
            continue
        tensor(name, one)
        assert one is not None  # else it were no tensor
        if one.device != source.device:
            raise ValueError(f"{name} must be on the device of {source_name}, {source.device}, got {one.device}")
        if one.dtype != source.dtype and not _autocast_unites(one, source):
            raise TypeError(f"{name} must have the dtype of {source_name}, {source.dtype}, got {one.dtype}")


def convolution(
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
) -> Convolution:
    """Check the shapes of a convolution's operands and its options; return its geometry.

    ``source`` is the shape of what the input is, or is gathered from; the input has ``channels`` and ``length``.
    """
    if len(weight) != 3:
        raise ValueError(
            f"weight must have shape (out_channels, in_channels / groups, kernel_size), got {tuple(weight)}"
        )
    out_channels, group_channels, kernel_size = weight
    if out_channels < 1 or group_channels < 1 or kernel_size < 1:
        raise ValueError(f"weight must have no empty axis, got shape {tuple(weight)}")
    groups = integer("groups", groups, 1)
    if channels != group_channels * groups:
        raise ValueError(
            f"{source_name} must have in_channels = weight.shape[1] * groups = {group_channels * groups} channels, "
            f"got {channels} (shape {tuple(source)}){_is_transposed(source_name, source, group_channels * groups)}"
        )
    if out_channels % groups:
        raise ValueError(f"groups must divide out_channels = {out_channels}, got {groups}")
    if bias is not None and (len(bias) != 1 or bias[0] != out_channels):
        raise ValueError(f"bias must have shape ({out_channels},), one value per output channel, got {tuple(bias)}")
    checked = geometry(kernel_size, stride, padding, dilation, groups)
    if checked.output_length(length, kernel_size) < 1:
        span = checked.dilation * (kernel_size - 1) + 1
        raise ValueError(
            f"kernel_size must fit into the padded input: dilation * (kernel_size - 1) + 1 = {span} is greater than "
            f"length + padding = {length + sum(checked.padding)}"
        )
    return checked


def geometry(
    kernel_size: int, stride: IntOrTuple, padding: IntOrTuple | str, dilation: IntOrTuple, groups: int
) -> Convolution:
    """Check a convolution's options; return its geometry."""
    stride, dilation = single("stride", stride, 1), single("dilation", dilation, 1)
    return Convolution(stride, _padding(padding, stride, dilation, kernel_size), dilation, groups)


def pool(
    length: int | None,
    pool_size: IntOrTuple,
    pool_stride: IntOrTuple | None,
    pool_padding: IntOrTuple,
    pool_dilation: IntOrTuple,
    ceil_mode: bool,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Pool:
    """Check a pool's arguments and, where it is known, the ``length`` of its input; return the pool's geometry."""
    flag("ceil_mode", ceil_mode)
    size = single("pool_size", pool_size, 1)
    geometry = Pool(
        size,
        size if pool_stride is None else single("pool_stride", pool_stride, 1),
        single("pool_padding", pool_padding, 0),
        single("pool_dilation", pool_dilation, 1),
        ceil_mode,
        contiguous(memory_format),
    )
    if geometry.padding > size // 2:
        raise ValueError(f"pool_padding must be at most half of pool_size = {size}, got {geometry.padding}")
    if length is not None and geometry.output_length(length) < 1:
        raise ValueError(
            f"pool_size must fit into the padded output of the convolution: pool_dilation * (pool_size - 1) + 1 = "
            f"{geometry.dilation * (size - 1) + 1} is greater than length + 2 * pool_padding = "
            f"{length + 2 * geometry.padding}"
        )
    return geometry


def row(name: str, value: Any, rows: int) -> int:
    """Return ``value``, which counts from the end where it is negative, as one of a table's ``rows``."""
    index = integer(name, value, -rows)
    if index >= rows:
        raise ValueError(f"{name} must be between {-rows} and {rows - 1} for a table of {rows} rows, got {index}")
    return index % rows


def positions(name: str, samples: int, length: int) -> None:
    """Raise ``ValueError`` if there are samples but no positions, which torch does not convolve even where padded."""
    if length < 1 and samples > 0:
        raise ValueError(f"{name} must have at least one position, got {samples} samples of length {length}")


def row_index(name: str, index: Tensor, table_name: str, table: Tensor, reach: int = 0) -> None:
    """Check that ``index`` and ``index + reach`` are rows of ``table`` ``(V, C)``.

    Raises ``TypeError`` for a wrong dtype, ``ValueError`` for a wrong shape or device and ``IndexError`` for a row that
    does not exist. Values are looked at on the CPU alone: elsewhere that would stop the host until the device is idle.
    There an assertion on the device guards the read, torch's or the kernels' own.
    """
    whole(name, index)
    if table.dim() != 2:
        raise ValueError(f"{table_name} must have shape (rows, channels), got {_shape(table)}")
    if index.device != table.device:
        raise ValueError(f"{name} must be on the device of {table_name}, {table.device}, got {index.device}")
    if index.device.type != "cpu" or index.numel() == 0 or torch.compiler.is_compiling() or is_watched():
        return
    if table.size(0) <= reach:
        raise IndexError(
            f"{table_name} must have at least {reach + 1} rows for {name} to count from, got {table.size(0)}"
            + (f" (a window reaches over (length - 1) * step + 1 = {reach + 1})" if reach else "")
        )
    extremes = torch.aminmax(index)
    least, greatest = int(extremes[0]), int(extremes[1])
    if least < 0 or greatest + reach >= table.size(0):
        raise IndexError(
            f"{name} must be between 0 and {table.size(0) - 1 - reach} for the {table.size(0)} rows of {table_name}, "
            f"got {least if least < 0 else greatest}"
        )


def whole(name: str, value: Tensor) -> None:
    """Raise ``TypeError`` for a tensor of other than whole numbers that count."""
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {value.dtype}")


def lengths(value: Tensor, device: torch.device, samples: int, most: int, batched: bool = True) -> Tensor:
    """Return the samples' lengths, ``(N,)``.

    Raises ``TypeError`` for another type or dtype, ``ValueError`` for a wrong shape or device and for lengths that are
    not between 0 and ``most``; on a GPU those are an assertion of torch's on the device.
    """
    tensor("lengths", value)
    whole("lengths", value)
    shape = (samples,) if batched else ()
    if value.shape != shape:
        raise ValueError(f"lengths must have shape {shape}, one number for each sample, got {_shape(value)}")
    if value.device != device:
        raise ValueError(f"lengths must be on the device of the samples, {device}, got {value.device}")
    value = value if batched else value.unsqueeze(0)
    if not samples or torch.compiler.is_compiling() or is_watched():
        return value
    if device.type != "cpu":
        torch._assert_async(((value >= 0) & (value <= most)).all(), f"lengths must be between 0 and {most}")
        return value
    least, greatest = (int(one) for one in torch.aminmax(value))
    if least < 0 or greatest > most:
        raise ValueError(
            f"lengths must be between 0 and {most}, the number of positions, got {least if least < 0 else greatest}"
        )
    return value


def _is_transposed(name: str, shape: tuple[int, ...], channels: int) -> str:
    """Return the hint that an input's last axis may be its channels; nothing where it cannot be."""
    if name != "input" or shape[-1] != channels:
        return ""
    return f": its last axis has {channels}, so if it is (N, L, C), pass input.transpose(-1, -2)"


def _padding(padding: IntOrTuple | str, stride: int, dilation: int, kernel_size: int) -> tuple[int, int]:
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0
        if padding != "same":
            raise ValueError(f"padding must be an integer, 'same' or 'valid', got {padding!r}")
        if stride != 1:
            raise ValueError(f"padding must not be 'same' where stride is not 1, got stride {stride}")
        total = dilation * (kernel_size - 1)
        return total // 2, total - total // 2
    padding = single("padding", padding, 0)
    return padding, padding


def _autocast_unites(one: Tensor, other: Tensor) -> bool:
    # Autocast brings the operands of a convolution to one dtype, but leaves float64 alone.
    eligible = FLOATING - {torch.float64}
    return torch.is_autocast_enabled(other.device.type) and one.dtype in eligible and other.dtype in eligible


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
