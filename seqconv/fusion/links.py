"""What a node of a graph does, in one form for modules, functions and methods of tensors."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from seqconv.fusion.guards import own_call_reason

__all__ = ["SHAPES", "Link", "is_shape_read", "length_read", "link_of"]

SHAPES = frozenset(("size", "shape", "dim", "ndim"))  # reads of a tensor that leave its numbers alone
SWAPS = ((1, 2), (2, 1), (-1, -2), (-2, -1), (1, -1), (-1, 1), (2, -2), (-2, 2))
RECURRENT = (nn.GRU, nn.LSTM, nn.RNN)
# What a subclass may change of a call.
RECURRENT_METHODS = (
    "forward", "check_forward_args", "check_input", "check_hidden_size", "get_expected_hidden_size",
    "get_expected_cell_size", "permute_hidden", "all_weights",
)  # fmt: skip


class Link(NamedTuple):
    """A node's work on ``source``: ``kind`` is what, ``options`` how, ``reason`` why it cannot be part of a fused call.

    Tensors among the options are nodes, or names of the root's attributes where a module holds them.
    """

    kind: str
    node: fx.Node
    source: Any
    options: dict[str, Any]
    reason: str | None = None


def _conv(input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
          groups: Any = 1) -> Any: ...  # fmt: skip
def _norm(input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
          training: Any = False, momentum: Any = 0.1, eps: Any = 1e-5) -> Any: ...  # fmt: skip
def _relu(input: Any, inplace: Any = False) -> Any: ...
def _dropout(input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> Any: ...
def _pool(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False,
          return_indices: Any = False) -> Any: ...  # fmt: skip
def _adaptive(input: Any, output_size: Any, return_indices: Any = False) -> Any: ...
def _max(input: Any, dim: Any, keepdim: Any = False) -> Any: ...
def _embedding(input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: Any = 2.0,
               scale_grad_by_freq: Any = False, sparse: Any = False) -> Any: ...  # fmt: skip
def _transpose(input: Any, dim0: Any, dim1: Any) -> Any: ...
def _squeeze(input: Any, dim: Any) -> Any: ...


# What torch's functions and methods are called here, and their arguments, as the documentation of torch has them.
CALLS: dict[Any, tuple[str, Callable[..., Any]]] = {
    F.conv1d: ("conv1d", _conv),
    F.conv2d: ("conv2d", _conv),
    F.batch_norm: ("norm", _norm),
    F.relu: ("relu", _relu),
    F.relu_: ("relu", _relu),
    torch.relu: ("relu", _relu),
    torch.relu_: ("relu", _relu),
    F.dropout: ("dropout", _dropout),
    F.dropout1d: ("dropout", _dropout),
    F.max_pool1d: ("pool", _pool),
    F.max_pool2d: ("pool2d", _pool),
    torch.max_pool1d: ("pool", _pool),
    torch.max_pool2d: ("pool2d", _pool),
    F.adaptive_max_pool1d: ("adaptive", _adaptive),
    torch.max: ("max", _max),
    torch.amax: ("amax", _max),
    F.embedding: ("embedding", _embedding),
    torch.transpose: ("transpose", _transpose),
    torch.swapaxes: ("transpose", _transpose),
    torch.squeeze: ("squeeze", _squeeze),
    torch.unsqueeze: ("unsqueeze", _squeeze),
    "relu": ("relu", _relu),
    "relu_": ("relu", _relu),
    "max": ("max", _max),
    "amax": ("amax", _max),
    "transpose": ("transpose", _transpose),
    "swapaxes": ("transpose", _transpose),
    "squeeze": ("squeeze", _squeeze),
    "unsqueeze": ("unsqueeze", _squeeze),
}
SIGNATURES = {of: inspect.signature(of) for _, of in CALLS.values()}


def link_of(node: fx.Node, leaves: Mapping[str, nn.Module]) -> Link | None:
    """Return what a node does, or ``None`` for what no fused call contains. ``leaves`` are modules by their names."""
    if node.op == "call_module":
        return _module_step(node, str(node.target), leaves[str(node.target)])
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in ("contiguous", "permute") or node.target is torch.permute or _is_rearrange(node):
        return _layout_step(node)
    if node.target is getattr and node.args[1:] == ("mT",):
        return Link("swap", node, node.args[0], {})
    try:
        kind, signature = CALLS[node.target]
        bound = SIGNATURES[signature].bind(*node.args, **node.kwargs)
    except (KeyError, TypeError):
        return None
    bound.apply_defaults()
    options = dict(bound.arguments)
    source = options.pop("input")
    return _checked(kind, node, source, options)


def _checked(kind: str, node: fx.Node, source: Any, options: dict[str, Any]) -> Link | None:
    reason = None
    computed = {name for name, one in options.items() if _is_computed(one)}
    tensors = {"weight", "bias", "running_mean", "running_var"}
    if kind in ("conv1d", "conv2d") and options["groups"] != 1:
        reason = "groups: torch's own convolution is as fast"
    if kind == "conv2d" and (shape := _shape(options["weight"])) is not None:
        options["kernel_size"] = shape[2:]
    if kind in ("pool", "pool2d", "adaptive") and options.pop("return_indices"):
        reason = "the pool returns indices"
    if kind == "adaptive":
        if options["output_size"] not in (1, (1,), [1]):
            return None
        kind, options = "maximum", {"dim": -1, "keepdim": True}
    elif kind in ("max", "amax"):
        if options["dim"] not in (-1, 2, (-1,), (2,), [-1], [2]):
            return None
        dim = options["dim"]
        options["dim"] = dim if isinstance(dim, int) else dim[0]
        if kind == "max":  # of values and indices
            values = _values(node)
            if values is None:
                return None
            node = values
        else:
            options["shared"] = True
        kind = "maximum"
    elif kind == "pool":
        size = options["kernel_size"]
        only = size[0] if isinstance(size, (tuple, list)) and len(size) == 1 else size
        shape = _shape(source)
        whole = source if shape is not None and len(shape) == 3 and only == shape[2] else length_read(only)
        if whole is not None and all(
            options[name] == default
            for name, default in {"padding": 0, "dilation": 1, "ceil_mode": False}.items()
        ) and options["stride"] in (None, size):  # fmt: skip
            return Link("maximum", node, source, {"dim": -1, "keepdim": True, "of": whole}, reason)
    elif kind == "dropout":
        if not options["training"] or options["p"] == 0:
            return Link("nothing", node, source, {})
        return Link(kind, node, source, {}, "an active dropout stands before the pool")
    elif kind == "transpose":
        return Link("swap", node, source, {}) if (options["dim0"], options["dim1"]) in SWAPS else None
    if computed - tensors:
        reason = f"{', '.join(sorted(computed - tensors))}: computed in the forward pass"
    return Link(kind, node, source, options, reason)


def _shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape that Dynamo knows of a node's tensor, ``None`` where it changes or is not known."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    shape = tuple(getattr(value, "shape", ()))
    return shape if shape and all(type(one) is int for one in shape) else None


def _is_computed(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, (tuple, list)) and any(map(_is_computed, value)))


def _values(node: fx.Node) -> fx.Node | None:
    """Return the one user of ``tensor.max(dim)`` that takes its values."""
    users = list(node.users)
    if len(users) != 1:
        return None
    target, arguments = users[0].target, users[0].args[1:]
    taken = (target is operator.getitem and arguments == (0,)) or (target is getattr and arguments == ("values",))
    return users[0] if taken else None


def _module_step(node: fx.Node, name: str, module: nn.Module) -> Link | None:
    if node.kwargs or len(node.args) != 1 + (isinstance(module, RECURRENT) and len(node.args) == 2):
        return None
    source = node.args[0]
    reason = own_call_reason(module)
    if isinstance(module, RECURRENT):
        return _recurrent_step(node, name, module, reason)
    options: dict[str, Any] = {}
    forward = type(module).forward
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and forward in (nn.Conv1d.forward, nn.Conv2d.forward):
        of = nn.Conv1d if isinstance(module, nn.Conv1d) else nn.Conv2d
        if type(module)._conv_forward is not of._conv_forward:
            return None
        bias = f"{name}.bias" if getattr(module, "bias", None) is not None else None
        options = {"weight": f"{name}.weight", "bias": bias}
        options |= {one: getattr(module, one) for one in ("stride", "padding", "dilation", "groups")}
        options |= {"kernel_size": module.kernel_size, "is_parametrized": is_parametrized(module)}
        if module.groups != 1:
            reason = reason or "groups: torch's own convolution is as fast"
        elif module.padding_mode != "zeros" and of is nn.Conv2d:
            reason = reason or f"padding_mode {module.padding_mode!r}"
        elif module.padding_mode != "zeros":
            options |= {"padding": 0, "pad": (module._reversed_padding_repeated_twice, module.padding_mode)}
        return Link("conv1d" if of is nn.Conv1d else "conv2d", node, source, options, reason)
    if isinstance(module, _BatchNorm):
        if forward is not _BatchNorm.forward:
            return Link("norm", node, source, {}, f"{type(module).__name__} has statistics of its own")
        options = {"training": module.training or module.running_mean is None}
        if options["training"]:
            options["module"] = name
        else:
            options |= {"momentum": 0.0, "eps": module.eps}
            for one in ("running_mean", "running_var", "weight", "bias"):
                options[one] = None if getattr(module, one) is None else f"{name}.{one}"
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            options["axes"] = 3 if isinstance(module, nn.BatchNorm1d) else 4
        elif reason is None:
            reason = f"{type(module).__name__} is of other axes"
        return Link("norm", node, source, options, reason)
    if forward is nn.ReLU.forward:
        return Link("relu", node, source, {}, reason)
    if forward is nn.Identity.forward:
        return Link("nothing", node, source, {}, reason)
    if forward in (nn.Dropout.forward, nn.Dropout1d.forward):
        active = module.training and module.p > 0  # type: ignore[operator]
        kind = "dropout" if active else "nothing"
        return Link(kind, node, source, {}, reason or ("an active dropout stands before the pool" if active else None))
    if forward in (nn.MaxPool1d.forward, nn.MaxPool2d.forward):
        options = {one: getattr(module, one) for one in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
        if module.return_indices:
            reason = reason or "the pool returns indices"
        return Link("pool" if forward is nn.MaxPool1d.forward else "pool2d", node, source, options, reason)
    if forward is nn.AdaptiveMaxPool1d.forward and module.output_size in (1, (1,), [1]):
        if module.return_indices:
            reason = reason or "the pool returns indices"
        return Link("maximum", node, source, {"dim": -1, "keepdim": True}, reason)
    if forward is nn.Embedding.forward:
        options = {"weight": f"{name}.weight", "padding_idx": module.padding_idx, "max_norm": module.max_norm}
        options |= {"scale_grad_by_freq": module.scale_grad_by_freq, "sparse": module.sparse}
        return Link("embedding", node, source, options, reason)
    return None


def _recurrent_step(node: fx.Node, name: str, module: nn.RNNBase, reason: str | None) -> Link:
    of, base = type(module).__name__, nn.GRU if isinstance(module, nn.GRU) else nn.LSTM
    operation = base.__name__.lower()
    own = [name for name in RECURRENT_METHODS if getattr(type(module), name, None) is not getattr(base, name, None)]
    if not isinstance(module, base):
        reason = reason or f"no kernels for {of}"
    elif own:
        reason = reason or f"{of} has a {own[0]} of its own"
    elif module.proj_size:
        reason = reason or f"proj_size {module.proj_size}"
    elif is_parametrized(module):
        reason = reason or "its parametrized weights would be computed twice where it is not served"
    directions, suffixes = 1 + module.bidirectional, ("", "_reverse")
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
    sets = [(layer, suffixes[d]) for layer in range(module.num_layers) for d in range(directions)]
    options = {
        "of": of,
        "operation": operation,
        "hx": node.args[1] if len(node.args) == 2 else None,
        "weights": [f"{name}.{kind}_l{layer}{suffix}" for layer, suffix in sets for kind in kinds],
        "options": (module.bidirectional, module.batch_first, module.dropout, module.training),
    }
    return Link("recurrent", node, node.args[0], options, reason)


def _is_rearrange(node: fx.Node) -> bool:
    return getattr(node.target, "__module__", "").startswith("einops") and len(node.args) == 2 and not node.kwargs


def _layout_step(node: fx.Node) -> Link | None:
    source, *rest = node.args
    if node.target == "contiguous":
        return None if rest or node.kwargs else Link("nothing", node, source, {})
    if _is_rearrange(node):
        before, arrow, after = str(rest[0]).partition("->")
        first, last = before.split(), after.split()
        is_swap = bool(arrow) and len(first) == 3 and last == [first[0], first[2], first[1]]
        plain = all(one.isidentifier() for one in first)
        return Link("swap", node, source, {}) if is_swap and plain and len(set(first)) == 3 else None
    axes: Any = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    axes = node.kwargs.get("dims", axes)
    wanted = [one % 3 if isinstance(one, int) and -3 <= one < 3 else one for one in axes]
    return Link("swap", node, source, {}) if wanted == [0, 2, 1] else None


def is_shape_read(node: fx.Node) -> bool:
    """Tell whether a node reads a tensor's shape alone."""
    return (node.op == "call_method" and node.target in ("size", "dim")) or (
        node.target is getattr and node.args[1] in SHAPES
    )


def length_read(value: Any) -> fx.Node | None:
    """Return the node whose number of positions, the last of three axes, ``value`` is; ``None`` for another value."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "call_method" and value.target == "size" and value.args[1:] in ((2,), (-1,)):
        return value.args[0]  # type: ignore[return-value]
    if value.target is not operator.getitem or value.args[1] not in (2, -1):
        return None
    shape: Any = value.args[0]
    if not isinstance(shape, fx.Node) or not is_shape_read(shape) or len(shape.args) + len(shape.kwargs) > 2:
        return None
    whole = shape.target == "size" or (shape.target is getattr and shape.args[1] == "shape")
    return shape.args[0] if whole else None  # type: ignore[return-value]
