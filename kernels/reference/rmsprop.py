"""One step of RMSprop in torch's own operations: the specification of the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["rmsprop_step"]


def rmsprop_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    mean_squares: Sequence[Tensor],
    *,
    rate: float,
    decay: float,
    epsilon: float,
) -> None:
    """Change, in place, every ``mean_square`` ``v`` and ``parameter`` ``p`` by its gradient ``g``.

    ``v = decay * v + (1 - decay) * g**2``, then ``p = p - rate * g / (sqrt(v) + epsilon)``: the operations and their
    order are those of :class:`torch.optim.RMSprop`.
    """
    for parameter, gradient, mean_square in zip(parameters, gradients, mean_squares, strict=True):
        mean_square.mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        parameter.addcdiv_(gradient, mean_square.sqrt().add_(epsilon), value=-rate)
