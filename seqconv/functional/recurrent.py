"""GRU and LSTM as functions: several layers, both directions, packed sequences, dropout on input and recurrent state.

Letters in the shapes: ``L`` time steps, ``N`` sequences, ``C`` input features, ``G`` gates (3 in a GRU: r, z, n; 4 in
an LSTM: i, f, g, o), ``H`` hidden size, ``P`` size of the output state (``H``, or ``proj_size`` in an LSTM that has
one), ``D`` directions, ``S`` layers times directions, in torch's order: layer 0 forward, layer 0 reverse, layer 1 ...

``weights`` holds for each of the ``S`` what torch's layers hold, in the order of ``nn.GRU.all_weights``: weight_ih,
weight_hh, then bias_ih and bias_hh or neither, then weight_hr in an LSTM with a projection.

Masks are inverted-dropout masks, already divided by 1 - p. ``input_mask`` multiplies the input of the first layer at
all time steps, in both directions: ``(N, C)``, or ``(G, N, C)`` with a mask for each gate. ``recurrent_mask``
multiplies the state where it enters the recurrent products, while the state that is carried stays as it is: ``(S, N,
P)``, or ``(S, G, N, P)`` with a mask for each gate, as in Keras, for all time steps; ``(S, L, 1, N, P)`` or ``(S, L, G,
N, P)`` with one for each. For an unbatched input there is no axis ``N``, and for a packed one the order is that of the
caller's batch, as torch has it for ``hx``. A mask that requires gradients gets them from ``reference`` alone.

The kernels of ``numba`` take a layer's sequences through all steps, masks and lengths inside, and compute half floats
in float32. ``recompute=True`` keeps the states alone for the backward pass, which then computes the gates again. Where
no mask but an ``(N, C)`` one of the input is given, ``reference`` runs torch's own fused kernel, else the plain steps
of :mod:`seqconv.kernels.reference.recurrent`. Errors: ``ValueError`` for a wrong shape, device, value or backend name,
``TypeError`` for a wrong type or dtype, :class:`~seqconv.backends.BackendError` where a backend asked for by name
cannot serve.

Under ``torch.compile`` a kernel is an operator of the graph. ``reference``, whose steps a graph takes minutes to
compile, and every call on a packed sequence break the graph and run as in eager mode; with ``fullgraph=True`` that is
an error, as ``torch.nn.GRU`` is. ``torch.export`` has no eager mode to fall back to, and unrolls the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from seqconv import backends
from seqconv.functional import arguments
from seqconv.functional.following import unfollowed
from seqconv.functional.recent import Recent
from seqconv.functional.recurrent_passes import floor, recurrent_layer
from seqconv.functional.tracing import Proxy, record
from seqconv.kernels.numba import support as numba_support
from seqconv.kernels.recurrence import NOTHING, Masks, Weights
from seqconv.kernels.reference import recurrent as reference
from seqconv.kernels.triton import support as triton_support

__all__ = [
    "RecurrentCall",
    "batch_shape",
    "gru",
    "in_one_piece",
    "lstm",
    "recurrent_call",
    "run_recent",
    "step_count",
    "unpack",
]

Sequences = TypeVar("Sequences", Tensor, PackedSequence)
Given = ParamSpec("Given")
Result = TypeVar("Result")

GATES = {"gru": 3, "lstm": 4}


def outside_graphs(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make ``function`` run in eager mode under ``torch.compile``, torch's own operations inside it included."""

    @wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        # Decorated by torch.compiler.disable, the function would bring torch.compile into every process: a second.
        if torch.compiler.is_dynamo_compiling() and not torch.compiler._is_exporting_flag:  # see following.py
            torch._dynamo.graph_break(msg="seqconv's GRU and LSTM run in eager mode: graphs unroll their steps")
            eager: Callable[Given, Result] = torch.compiler.disable(function)
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def in_one_piece(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make ``function`` one piece under ``torch.compile``: all in a graph, or all outside.

    Dynamo skips a function that holds an ``nn.GRU``, but makes graphs of what that one calls.
    """

    @wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if not torch.compiler.is_compiling() and _callback():
            eager: Callable[Given, Result] = torch.compiler.disable(function)
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return call


# What Dynamo makes of a function that is called: nothing at all outside torch.compile.
_callback = torch._C._dynamo.eval_frame.get_eval_frame_callback


def gru(
    input: Sequences,
    weights: Sequence[Sequence[Tensor]],
    hx: Tensor | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    input_mask: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    reset_after: bool = True,
    recompute: bool = False,
    backend: str = "auto",
) -> tuple[Sequences, Tensor]:
    """Return what ``torch.nn.GRU`` with these weights returns, with dropout masks where they are given.

    Shapes: ``input`` ``(L, N, C)``, with ``batch_first`` ``(N, L, C)``, unbatched ``(L, C)``, or a ``PackedSequence``;
    ``hx`` ``(S, N, H)`` or ``(S, H)``, zeros by default; weights and masks as above. The result is the output
    ``(L, N, D * H)``, laid out as the input is, and the last states, shaped as ``hx``. ``dropout`` is torch's, between
    the layers, and acts where ``training`` is true. Without ``reset_after`` the reset gate multiplies the state in
    front of the recurrent product, as in Keras with ``reset_after=False``, where torch's multiplies the product.
    ``backend`` is ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.
    """
    if isinstance(input, Proxy):
        options = {"bidirectional": bidirectional, "batch_first": batch_first, "dropout": dropout, "training": training}
        masks = {"input_mask": input_mask, "recurrent_mask": recurrent_mask}
        others = {"reset_after": reset_after, "recompute": recompute}
        return record(gru, input, weights, hx, **options, **masks, **others, backend=backend)  # type: ignore[no-any-return]
    given = input, weights, hx, bidirectional, batch_first, dropout, training, input_mask, recurrent_mask
    call = recurrent_call("gru", *given, reset_after=reset_after, recompute=recompute)
    return unpack("gru", call.run(backend))


def lstm(
    input: Sequences,
    weights: Sequence[Sequence[Tensor]],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    input_mask: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    recompute: bool = False,
    backend: str = "auto",
) -> tuple[Sequences, tuple[Tensor, Tensor]]:
    """Return what ``torch.nn.LSTM`` with these weights returns, with dropout masks where they are given.

    Shapes: as in :func:`gru`, with ``hx`` a pair of ``(S, N, P)`` and ``(S, N, H)`` and the output ``(L, N, D * P)``.
    """
    if isinstance(input, Proxy):
        options = {"bidirectional": bidirectional, "batch_first": batch_first, "dropout": dropout, "training": training}
        masks = {"input_mask": input_mask, "recurrent_mask": recurrent_mask}
        others = {"recompute": recompute}
        return record(lstm, input, weights, hx, **options, **masks, **others, backend=backend)  # type: ignore[no-any-return]
    given = input, weights, hx, bidirectional, batch_first, dropout, training, input_mask, recurrent_mask
    call = recurrent_call("lstm", *given, recompute=recompute)
    return unpack("lstm", call.run(backend))


def run_recent(
    operation: str,
    operands: tuple[Any, ...],
    options: tuple[bool, bool, float, bool],
    recent: Recent,
    *,
    reset_after: bool = True,
) -> Any:
    """Return what torch's layer returns, by own kernels; ``None`` where torch's is as fast, or needed.

    ``operands`` are the input, the states or ``None`` for each of two, and the weights of all layers and directions,
    two or four for each; ``options`` are ``bidirectional``, ``batch_first``, ``dropout`` and ``training``. Calls
    without gradients are found again in ``recent``: a tiny one takes 32 microseconds instead of 73.
    """
    source, h, c, *weights = operands
    is_known = isinstance(source, Tensor) and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if is_known and (known := recent.find(operands)) is not None:
        return known(*operands)
    size = 4 if len(weights) > 3 and weights[2].dim() == 1 else 2
    each = [weights[i : i + size] for i in range(0, len(weights), size)]
    hx = None if h is c is None else h if operation == "gru" else (h, c)
    call = recurrent_call(operation, source, each, hx, *options, None, None, reset_after=reset_after)
    served, result = call.run_kernels()
    if served is None:
        if is_known:
            recent.add(operands, _nothing)  # type: ignore[arg-type]
    elif is_known and call.data.dtype in numba_support.DTYPES and not (call.dropout and call.training):
        recent.add(operands, partial(_run_known, served, call.cell, call.time_axis, call.directions, size))
    return result


NO_MASKS = Masks()


def _nothing(*_operands: Any) -> None:
    """Return ``None``: what is known of calls that torch serves."""


def _run_known(
    backend: str, cell: str, time_axis: int, directions: int, size: int, source: Tensor, h: Tensor | None,
    c: Tensor | None, *weights: Tensor,
) -> Any:  # fmt: skip
    """Run a backend's kernels as a call did whose operands had these formats: nothing is checked."""
    data = source.movedim(time_axis, 0) if source.dim() == 3 else source.unsqueeze(1)
    each = [Weights(*weights[i : i + size], *[None] * (4 - size)) for i in range(0, len(weights), size)]
    if h is None:
        h = c = data.new_zeros(len(each), data.size(1), each[0].weight_hh.size(1))
    elif source.dim() == 2:
        h, c = h.unsqueeze(1), None if c is None else c.unsqueeze(1)
    states = (h, c) if cell == "lstm" else (h,)
    kernels, lasts = floor(backend), []
    for first in range(0, len(each), directions):
        own = slice(first, first + directions)
        given = cell, data, tuple(state[own] for state in states), each[own], NO_MASKS, None  # type: ignore[index]
        data, last, _ = kernels.forward(*given, keep=NOTHING)
        lasts.append(last)
    found = lasts[0] if len(lasts) == 1 else tuple(map(torch.cat, zip(*lasts, strict=True)))
    if source.dim() == 2:
        data, found = data.squeeze(1), tuple(state.squeeze(1) for state in found)
    elif time_axis:
        data = data.movedim(0, time_axis)
    return data, found if cell == "lstm" else found[0]


def unpack(operation: str, result: tuple[Any, tuple[Tensor, ...]]) -> tuple[Any, Any]:
    """Return what torch's layer returns: the GRU's last state alone, the LSTM's as a pair."""
    output, states = result
    return (output, states[0]) if operation == "gru" else (output, states)


def batch_shape(input: Tensor | PackedSequence, batch_first: bool) -> tuple[int, ...]:
    """Return ``(N,)``, or ``()`` for an unbatched input; raise ``TypeError`` or ``ValueError`` for what is neither."""
    if isinstance(input, PackedSequence):
        return (int(input.batch_sizes[0]),)
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(input).__name__}")
    if input.dim() not in (2, 3):
        layout = "(N, L, C)" if batch_first else "(L, N, C)"
        raise ValueError(f"input must have shape {layout} or (L, C), got {tuple(input.shape)}")
    return (input.size(0 if batch_first else 1),) if input.dim() == 3 else ()


def step_count(input: Tensor | PackedSequence, batch_first: bool) -> int:
    """Return the number of time steps, of the longest sequence."""
    if isinstance(input, PackedSequence):
        return len(input.batch_sizes)
    return input.size(1 if batch_first and input.dim() == 3 else 0)


def recurrent_call(
    operation: str,
    input: Tensor | PackedSequence,
    weights: Sequence[Sequence[Tensor]],
    hx: Any,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    input_mask: Tensor | None,
    recurrent_mask: Tensor | None,
    *,
    reset_after: bool = True,
    recompute: bool = False,
) -> RecurrentCall:
    """Check a call of :func:`gru` or :func:`lstm`, which describe the arguments."""
    gates = GATES[operation]
    batch = batch_shape(input, batch_first)
    packed = isinstance(input, PackedSequence)
    data = input.data if isinstance(input, PackedSequence) else input
    checked = _check_weights(weights, operation, data, 2 if bidirectional else 1)
    stack, features, hidden_size, state_size = len(checked), data.size(-1), *_sizes(checked[0], gates)
    time_axis = 1 if batch and batch_first and not packed else 0
    if data.size(time_axis) == 0:
        raise ValueError(f"input must have at least one time step, got shape {tuple(data.shape)}")
    dropout = arguments.probability("dropout", dropout)

    names, sizes = (("hx",), (state_size,)) if operation == "gru" else (("hx[0]", "hx[1]"), (state_size, hidden_size))
    states: Sequence[Tensor]
    if hx is None:
        states = tuple(data.new_zeros(stack, *batch, size) for size in sizes)
    elif operation == "gru":
        states = (hx,)
    elif isinstance(hx, (tuple, list)) and len(hx) == 2:
        states = hx
    else:
        raise TypeError(f"hx must be a pair of tensors (h_0, c_0), got {type(hx).__name__}")
    for name, state, size in zip(names, states, sizes, strict=True):
        _check(name, state, data, (stack, *batch, size))
    if input_mask is not None:
        _check("input_mask", input_mask, data, (*batch, features), (gates, *batch, features))
    if recurrent_mask is not None:
        own, steps = (*batch, state_size), step_count(input, batch_first)
        leads = (stack,), (stack, gates), (stack, steps, 1), (stack, steps, gates)
        _check("recurrent_mask", recurrent_mask, data, *((*lead, *own) for lead in leads))

    def with_sequences_of_data(tensor: Tensor) -> Tensor:
        # In states and masks alike, sequences are the last axis but one.
        if not batch:
            return tensor.unsqueeze(-2)
        if isinstance(input, PackedSequence) and input.sorted_indices is not None:
            return tensor.index_select(-2, input.sorted_indices)
        return tensor

    return RecurrentCall(
        operation,
        input,
        time_axis,
        data.movedim(time_axis, 0) if batch else data.unsqueeze(1),
        input.batch_sizes if isinstance(input, PackedSequence) else None,
        checked,
        tuple(with_sequences_of_data(state) for state in states),
        None if input_mask is None else with_sequences_of_data(input_mask),
        None if recurrent_mask is None else with_sequences_of_data(recurrent_mask),
        2 if bidirectional else 1,
        dropout,
        bool(training),
        operation if reset_after else "gru_reset_before",
        bool(recompute),
    )


@dataclass(frozen=True)
class RecurrentCall:
    """A checked call: ``data`` is time-major and batched, or packed; states and masks are in its order of sequences."""

    operation: str
    input: Tensor | PackedSequence
    time_axis: int
    data: Tensor
    batch_sizes: Tensor | None
    weights: tuple[Weights, ...]
    states: tuple[Tensor, ...]
    input_mask: Tensor | None
    recurrent_mask: Tensor | None
    directions: int
    dropout: float
    training: bool
    cell: str
    recompute: bool

    def run(self, backend: str) -> tuple[Any, tuple[Tensor, ...]]:
        """Run the kernels that serve the call; return the output and the last states, laid out as the caller's."""
        if self.batch_sizes is None:
            return self._run(backend)
        return outside_graphs(self._run)(backend)  # torch 2.11 cannot pad packed sequences in graphs

    def _run(self, backend: str) -> tuple[Any, tuple[Tensor, ...]]:
        call = _cast_by_autocast(self)
        padded, lengths = call._padded()
        operands = call._arguments(0, padded, lengths)
        kernel = backends.choose(self.operation, backend, operands)
        if kernel is _composed and self._suits_torch():
            output, *states = outside_graphs(self._run_torch)()
        elif call is self:
            output, *states = self._run_layers(backend, kernel, operands)
        else:
            with torch.autocast(padded.device.type, enabled=False):
                output, *states = call._run_layers(backend, kernel, operands)
        return self._as_input(output), tuple(self._as_input_states(state) for state in states)

    def run_kernels(self) -> tuple[str | None, Any]:
        """Return whose kernels serve the call, and what torch's layer returns.

        Both are ``None`` where torch's kernel is as fast, or needed.
        """
        call = _cast_by_autocast(self)
        if call is not self:
            return None, None
        operands = self._arguments(0, *self._padded())
        backend, kernel = backends.choose_named(self.operation, "auto", operands)
        if kernel is _composed:
            return None, None
        output, *states = self._run_layers("auto", kernel, operands)
        states = [self._as_input_states(state) for state in states]
        return backend, unpack(self.operation, (self._as_input(output), tuple(states)))

    def explain(self, backend: str) -> backends.Explanation:
        """Tell which kernel would serve the first layer, and why."""
        call = _cast_by_autocast(self)
        return backends.explain_call(self.operation, backend, call._arguments(0, *call._padded()))

    def _suits_torch(self) -> bool:
        plain = self.recurrent_mask is None and self.cell == self.operation
        return plain and (self.input_mask is None or self.input_mask.dim() == 2)

    def _run_torch(self) -> tuple[Tensor, ...]:
        parameters = [tensor for weights in self.weights for tensor in weights if tensor is not None]
        states: Any = self.states[0] if self.operation == "gru" else self.states
        layers = len(self.weights) // self.directions
        options = (self.weights[0].bias_ih is not None, layers, self.dropout, self.training, self.directions == 2)
        kernel: Any = torch.gru if self.operation == "gru" else torch.lstm
        result: tuple[Tensor, ...]
        if self.batch_sizes is None:
            data = self.data if self.input_mask is None else self.data * self.input_mask
            result = kernel(data, states, parameters, *options, False)
        else:
            data = self.data
            if self.input_mask is not None:
                sequences = torch.cat([torch.arange(int(size), device=data.device) for size in self.batch_sizes])
                data = data * self.input_mask.index_select(0, sequences)
            result = kernel(data, self.batch_sizes, states, parameters, *options)
        return result

    def _run_layers(self, backend: str, kernel: backends.Kernel, operands: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Run layer after layer, the first one as told."""
        lengths = operands[5]
        output, states = kernel(*operands)
        last: list[tuple[Tensor, ...]] = [states]
        for first in range(self.directions, len(self.weights), self.directions):
            if self.dropout:
                output = self._dropped(output)
            operands = self._arguments(first, output, lengths)
            output, states = backends.choose(self.operation, backend, operands)(*operands)
            last.append(states)
        if self.batch_sizes is not None:
            output = pack_padded_sequence(output, self._lengths()).data
        if len(last) == 1:
            return output, *states
        return output, *(torch.cat(states) for states in zip(*last, strict=True))

    def _dropped(self, output: Tensor) -> Tensor:
        """Return a layer's output with torch's dropout, which draws for packed data what it has there."""
        if self.batch_sizes is None:
            return F.dropout(output, self.dropout, self.training)
        data = F.dropout(pack_padded_sequence(output, self._lengths()).data, self.dropout, self.training)
        return pad_packed_sequence(PackedSequence(data, self.batch_sizes))[0]

    def _arguments(self, first: int, input: Tensor, lengths: Tensor | None) -> tuple[Any, ...]:
        """Return what the kernel takes for a layer, whose first direction is the number ``first`` of all."""
        own = slice(first, first + self.directions)
        of_input, of_state = None if first else self.input_mask, self.recurrent_mask
        if of_input is not None and of_input.dim() == 2:
            of_input = of_input.unsqueeze(0)
        if of_state is not None:
            of_state = of_state[own]
            while of_state.dim() < 5:
                of_state = of_state.unsqueeze(1)
        states = tuple(state[own] for state in self.states)
        return self.cell, input, states, self.weights[own], Masks(of_input, of_state), lengths, self.recompute

    def _padded(self) -> tuple[Tensor, Tensor | None]:
        """Return the input as (L, N, C), and the lengths of its sequences if they differ."""
        if self.batch_sizes is None:
            return self.data, None
        return pad_packed_sequence(PackedSequence(self.data, self.batch_sizes))

    def _lengths(self) -> Tensor:
        assert self.batch_sizes is not None
        first = int(self.batch_sizes[0])
        return (self.batch_sizes > torch.arange(first, device=self.batch_sizes.device)[:, None]).sum(1)

    def _as_input(self, output: Tensor) -> Tensor | PackedSequence:
        if isinstance(self.input, PackedSequence):
            given = self.input  # Dynamo makes an empty one of _replace
            return PackedSequence(output, given.batch_sizes, given.sorted_indices, given.unsorted_indices)
        return output.movedim(0, self.time_axis) if self.input.dim() == 3 else output.squeeze(1)

    def _as_input_states(self, state: Tensor) -> Tensor:
        if isinstance(self.input, PackedSequence):
            order = self.input.unsorted_indices
            return state if order is None else state.index_select(-2, order)
        return state if self.input.dim() == 3 else state.squeeze(-2)


def _cast_by_autocast(call: RecurrentCall) -> RecurrentCall:
    """Return the call in autocast's dtype where torch's own kernel would compute and return in that dtype."""
    device = call.data.device.type
    # torch's GRU on the CPU has no such kernel: there autocast acts on its products alone, as it does on the steps.
    if not _autocasts(device) or (call.operation == "gru" and device == "cpu"):
        return call
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(dtype)

    return replace(
        call,
        data=cast(call.data),
        weights=tuple(Weights(*map(cast, weights)) for weights in call.weights),
        states=tuple(map(cast, call.states)),
        input_mask=cast(call.input_mask),
        recurrent_mask=cast(call.recurrent_mask),
    )


# torch raises for devices that have no autocast, such as "meta"; Dynamo of torch 2.11 cannot ask which have.
AUTOCASTS = frozenset(one for one in ("cpu", "cuda", "mps", "xpu", "hpu") if torch.amp.is_autocast_available(one))


def _autocasts(device: str) -> bool:
    return device in AUTOCASTS and torch.is_autocast_enabled(device)


def _check_weights(
    weights: Sequence[Sequence[Tensor]], operation: str, data: Tensor, directions: int
) -> tuple[Weights, ...]:
    """Check the weights of all layers and directions against each other and the input."""
    gates, counts = GATES[operation], (2, 4) if operation == "gru" else (2, 3, 4, 5)
    if not weights or len(weights) % directions:
        raise ValueError(f"weights must hold {directions} tuples of tensors per layer, got {len(weights)} tuples")
    for index, one in enumerate(weights):
        if len(one) not in counts or len(one) != len(weights[0]):
            raise ValueError(
                f"weights[{index}] must hold {' or '.join(map(str, counts))} tensors, all alike, got {len(one)}"
            )
        for weight in one:
            if not isinstance(weight, Tensor):
                raise TypeError(f"weights[{index}] must hold tensors, got {type(weight).__name__}")
    checked = tuple(
        Weights(
            weight_ih=one[0],
            weight_hh=one[1],
            bias_ih=one[2] if len(one) > 3 else None,
            bias_hh=one[3] if len(one) > 3 else None,
            weight_hr=one[-1] if len(one) % 2 else None,
        )
        for one in weights
    )
    hidden_size, state_size = _sizes(checked[0], gates)
    for index, layer in enumerate(checked):
        features = data.size(-1) if index < directions else directions * state_size
        if index == 0 and layer.weight_ih.dim() == 2 and layer.weight_ih.size(1) != features:
            raise ValueError(_wrong_features(data, layer.weight_ih.size(1)))
        shapes = (
            (gates * hidden_size, features),
            (gates * hidden_size, state_size),
            (gates * hidden_size,),
            (gates * hidden_size,),
            (state_size, hidden_size),
        )
        for name, tensor, shape in zip(Weights._fields, layer, shapes, strict=True):
            if tensor is not None:
                _check(f"{name} of weights[{index}]", tensor, data, shape)
    return checked


def _wrong_features(data: Tensor, wanted: int) -> str:
    hint = ""
    if data.dim() == 3 and data.size(1) == wanted:
        hint = f": its axis 1 has {wanted}, so if it is (N, C, L), pass input.transpose(1, 2) with batch_first=True"
    return (
        f"input must have C = weight_ih.shape[1] = {wanted} features on its last axis, got {data.size(-1)} "
        f"(shape {tuple(data.shape)}){hint}"
    )


def _sizes(weights: Weights, gates: int) -> tuple[int, int]:
    """Return H and P."""
    if weights.weight_hh.dim() != 2:
        raise ValueError(
            f"weight_hh of weights[0] must have shape ({gates} * H, H), got {tuple(weights.weight_hh.shape)}"
        )
    hidden_size = weights.weight_hh.size(0) // gates
    return hidden_size, hidden_size if weights.weight_hr is None else weights.weight_hh.size(1)


def _check(name: str, tensor: Tensor, data: Tensor, *shapes: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if not any(tensor.shape == shape for shape in shapes):  # Dynamo takes `in` for identity where sizes are symbols
        raise ValueError(f"{name} must have shape {' or '.join(map(str, shapes))}, got {tuple(tensor.shape)}")
    if tensor.device != data.device:
        raise ValueError(f"{name} must be on the device of input, {data.device}, got {tensor.device}")
    # Under autocast input and weights may differ, as in torch's own layers.
    if tensor.dtype != data.dtype and not _autocasts(data.device.type):
        raise TypeError(f"{name} must have the dtype of input, {data.dtype}, got {tensor.dtype}")


@outside_graphs
def _composed(*operands: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the reference, which keeps what autograd keeps."""
    *given, _recompute = operands
    return reference.layer(*given)


def _refuse_on_cpu(*given: Any) -> str | None:
    """Return why the CPU's kernels cannot serve a call, or ``None``."""
    _, input, states, weights, masks, *_ = given
    return numba_support.refuse_recurrent(input, states, weights, masks) or _unfollowed(*given)


def _refuse_on_gpus(*given: Any) -> str | None:
    """Return why the GPU's kernels cannot serve a call, or ``None``."""
    *operands, _recompute = given
    return triton_support.refuse_recurrent(*operands) or _unfollowed(*given)


def _unfollowed(
    _cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Weights, ...],
    masks: Masks,
    lengths: Tensor | None,
    _recompute: bool,
) -> str | None:
    return unfollowed(input, *states, *(one for own in weights for one in own), *masks, lengths, autocast=True)


def _avoid_on_cpu(
    cell: str, input: Tensor, _states: object, weights: tuple[Weights, ...], masks: Masks, *_others: object
) -> str | None:
    """Return why torch's own kernel is faster, or ``None``."""
    return numba_support.avoid_recurrent(cell, input, weights, masks)


for _operation in GATES:
    backends.register(_operation, "reference", lambda: _composed)
    on_cpu, on_gpus = (partial(partial, recurrent_layer, name) for name in ("numba", "triton"))
    backends.register(_operation, "numba", on_cpu, _refuse_on_cpu, _avoid_on_cpu)
    backends.register(_operation, "triton", on_gpus, _refuse_on_gpus, triton_support.avoid_recurrent)
