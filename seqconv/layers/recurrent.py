"""``nn.GRU`` and ``nn.LSTM`` with dropout on the input and on the recurrent state, drawn once per sequence.

Arguments and ``state_dict`` are torch's, and without these dropouts, and always in evaluation, the numbers too, within
rounding. In training a fresh mask is drawn at every call from torch's generator, so that a seed gives the same masks on
every backend; it is held over all time steps of a sequence (Gal and Ghahramani, 2016). The semantics are those of
``dropout`` and ``recurrent_dropout`` in Keras' layers.
"""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqconv import backends
from seqconv.functional import recurrent as functional
from seqconv.functional.arguments import flag, probability
from seqconv.functional.recent import Recent
from seqconv.layers import keras
from seqconv.layers.fused import Fused

__all__ = ["GRU", "LSTM"]

MODES = ("per_gate", "shared")

# The latest calls without gradients, by layer and options.
_recents: WeakKeyDictionary[nn.Module, dict[Any, Recent]] = WeakKeyDictionary()


class _RecurrentDropout(Fused, nn.RNNBase):
    """What the two layers share: their dropout options, the masks, and the call."""

    operation: ClassVar[str]
    gates: ClassVar[int]
    # Layers that were pickled before these options were there have the defaults.
    reset_after = True
    recurrent_dropout_per_step = False
    recompute = False

    def _set_options(
        self,
        input_dropout: float,
        recurrent_dropout: float,
        recurrent_dropout_mode: str,
        recurrent_dropout_per_step: bool,
        recompute: bool,
        backend: str,
    ) -> None:
        if recurrent_dropout_mode not in MODES:
            raise ValueError(
                f"recurrent_dropout_mode must be one of {', '.join(MODES)}, got {recurrent_dropout_mode!r}"
            )
        self.input_dropout = probability("input_dropout", input_dropout)
        self.recurrent_dropout = probability("recurrent_dropout", recurrent_dropout)
        self.recurrent_dropout_mode = recurrent_dropout_mode
        self.recurrent_dropout_per_step = flag("recurrent_dropout_per_step", recurrent_dropout_per_step)
        self.recompute = flag("recompute", recompute)
        self.backend = backends.check_name(backend)

    def prepare(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        input_mask: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> functional.RecurrentCall:
        """Check the inputs, draw what masks training needs, and return the call that ``forward`` runs."""
        if self.training:
            input_mask = self._draw_input_mask(input, None) if input_mask is None else input_mask
            recurrent_mask = self._draw_recurrent_mask(input, None) if recurrent_mask is None else recurrent_mask
        if not torch.compiler.is_compiling():  # of torch's own kernels, which no graph holds
            self._update_flat_weights()
        return functional.recurrent_call(
            self.operation,
            input,
            self.all_weights,
            hx,
            self.bidirectional,
            self.batch_first,
            self.dropout,
            self.training,
            input_mask,
            recurrent_mask,
            reset_after=self.reset_after,
            recompute=self.recompute,
        )

    @functional.in_one_piece
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        input_mask: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the layer; arguments and results are torch's.

        ``input_mask`` and ``recurrent_mask`` take the place of the masks that would be drawn in training, and act in
        evaluation too. Shapes and scale are described in :mod:`seqconv.functional.recurrent`.
        """
        is_pair = self.operation == "lstm" and isinstance(hx, (tuple, list)) and len(hx) == 2
        if (
            self._may_be_known(input)
            and input_mask is recurrent_mask is None
            and (hx is None or self.operation == "gru" or is_pair)
        ):
            states = hx if is_pair else (hx, None)
            options = self.bidirectional, self.batch_first, self.dropout, False
            recent = _recents.setdefault(self, {}).setdefault((options, self.reset_after), Recent())
            operands = (input, *states, *self._parameters.values())
            found = functional.run_recent(self.operation, operands, options, recent, reset_after=self.reset_after)
            if found is not None:
                return found  # type: ignore[no-any-return]
        call = self.prepare(input, hx, input_mask=input_mask, recurrent_mask=recurrent_mask)
        return functional.unpack(self.operation, call.run(self.backend))

    def _may_be_known(self, input: Any) -> bool:
        """Tell whether a call like this one, without gradients, may be found again with its parameters as they are."""
        if torch.is_grad_enabled() or self.training or self.backend != "auto" or torch.compiler.is_compiling():
            return False
        return isinstance(input, Tensor) and not self.proj_size and [*self._parameters] == self._flat_weights_names

    def draw_masks(
        self, input: Tensor | PackedSequence, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Draw ``(input_mask, recurrent_mask)`` for ``input`` as a call in training does; ``None`` where p is 0.

        Without a ``generator`` torch's global one for the device is used, as in a call.
        """
        return self._draw_input_mask(input, generator), self._draw_recurrent_mask(input, generator)

    def load_keras_weights(self, arrays: Any) -> None:
        """Load the arrays of ``keras_layer.get_weights()``, in place; see :func:`seqconv.layers.keras.load`."""
        keras.load(self, arrays, reset_after=self.reset_after)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.input_dropout:
            text += f", input_dropout={self.input_dropout}"
        if self.recurrent_dropout:
            text += f", recurrent_dropout={self.recurrent_dropout}"
            text += f", recurrent_dropout_mode={self.recurrent_dropout_mode!r}"
            text += ", recurrent_dropout_per_step=True" if self.recurrent_dropout_per_step else ""
        text += "" if self.reset_after else ", reset_after=False"
        text += ", recompute=True" if self.recompute else ""
        if self.backend != "auto":
            text += f", backend={self.backend!r}"
        return text

    def _draw_input_mask(self, input: Tensor | PackedSequence, generator: torch.Generator | None) -> Tensor | None:
        # As in Keras, the gates have their own masks of the input only where they have their own of the state.
        batch = functional.batch_shape(input, self.batch_first)
        per_gate = self.recurrent_dropout > 0 and self.recurrent_dropout_mode == "per_gate"
        shape = (self.gates, *batch, self.input_size) if per_gate else (*batch, self.input_size)
        return self._draw(self.input_dropout, shape, generator)

    def _draw_recurrent_mask(self, input: Tensor | PackedSequence, generator: torch.Generator | None) -> Tensor | None:
        batch, per_gate = functional.batch_shape(input, self.batch_first), self.recurrent_dropout_mode == "per_gate"
        lead: tuple[int, ...] = (self.gates,) if per_gate else ()
        if self.recurrent_dropout_per_step:
            lead = functional.step_count(input, self.batch_first), *(lead or (1,))
        stack = self.num_layers * (2 if self.bidirectional else 1)
        shape = (stack, *lead, *batch, self.proj_size or self.hidden_size)
        return self._draw(self.recurrent_dropout, shape, generator)

    def _draw(self, p: float, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor | None:
        if p == 0:
            return None
        like = self.all_weights[0][0]
        # Numbers in float32, so that a seed draws the same masks for all dtypes: in 1/3 of the time of bernoulli_.
        drawn = like.new_zeros(shape, dtype=torch.float32).uniform_(generator=generator)
        return drawn.ge_(p).div_(1 - p if p < 1 else 1).to(like.dtype)


class GRU(_RecurrentDropout, nn.GRU):
    """``nn.GRU`` with dropout on input and recurrent state: ``(L, N, C)``, with ``batch_first`` ``(N, L, C)``.

    Positional arguments, shapes, parameters and ``state_dict`` are those of ``nn.GRU``; the keyword-only ones are

    - ``input_dropout``: probability in [0, 1] that a feature of the first layer's input is dropped.
    - ``recurrent_dropout``: probability in [0, 1] that a unit of the state is dropped from the recurrent products, in
      every layer and direction. The state that is carried, ``z * h``, is never dropped.
    - ``recurrent_dropout_mode``: ``"per_gate"`` draws a mask for each gate, as Keras does, ``"shared"`` one for all.
      With recurrent dropout it holds for the masks of the input too.
    - ``recurrent_dropout_per_step``: draw the masks of the state anew for each time step.
    - ``reset_after``: where the reset gate acts; ``True`` is torch's and cuDNN's GRU, ``False`` the one whose gate
      multiplies the state in front of the product (Cho et al., 2014), Keras' ``reset_after=False``.
    - ``recompute``: keep no gates for the backward pass, which computes them again from the states.
    - ``backend``: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Both dropouts act in training, drop for a whole sequence, and scale what they keep by 1 / (1 - p); a probability of
    1 drops everything, as in ``nn.Dropout`` (Keras takes it as 0). ``dropout`` is torch's, between layers. The kernels
    keep for the backward pass, besides input and output, 4 numbers of every unit and step, with ``recompute`` none; an
    LSTM's 5, and 1. So the output must not be changed in place before that pass, as ``nn.LSTM``'s must not.

    ``torch.compile`` skips the code that calls an ``nn.GRU`` or ``nn.LSTM``, this class among them, unless
    ``torch._dynamo.config.allow_rnn`` is true: then the kernel is an operator of the graph. The functions of
    :mod:`seqconv.functional` are one in any case.

    Raises ``ValueError`` for a probability outside [0, 1], an unknown mode or backend, ``TypeError`` for a probability
    that is no number or a flag that is none, and in a call what :func:`seqconv.functional.recurrent.gru` raises.
    """

    operation = "gru"
    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: str = "per_gate",
        recurrent_dropout_per_step: bool = False,
        reset_after: bool = True,
        recompute: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )
        self._set_options(
            input_dropout, recurrent_dropout, recurrent_dropout_mode, recurrent_dropout_per_step, recompute, backend
        )
        self.reset_after = flag("reset_after", reset_after)


class LSTM(_RecurrentDropout, nn.LSTM):
    """``nn.LSTM`` with dropout on input and recurrent state: ``(L, N, C)``, with ``batch_first`` ``(N, L, C)``.

    Positional arguments, shapes, parameters and ``state_dict`` are those of ``nn.LSTM``, projections included. The
    keyword-only arguments but ``reset_after``, and what is raised, are those of :class:`GRU`. The cell state ``c`` is
    never dropped.
    """

    operation = "lstm"
    gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: str = "per_gate",
        recurrent_dropout_per_step: bool = False,
        recompute: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        self._set_options(
            input_dropout, recurrent_dropout, recurrent_dropout_mode, recurrent_dropout_per_step, recompute, backend
        )
