"""The notebook's optimizer, in one pass over the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional.following import unfollowed
from seqconv.kernels.numba.support import MISSING
from seqconv.kernels.triton.launch import refuse_device
from seqconv.kernels.triton.rmsprop import DTYPES as TRITONS

__all__ = ["RMSprop", "rmsprop"]


def rmsprop(parameters: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-3) -> RMSprop:
    """Return RMSprop as the notebook's framework, Keras 2.0, computed it by default.

    For a gradient g, with decay 0.9 and epsilon 1e-7, not centred, without momentum::

        v = 0.9 * v + 0.1 * g**2
        parameter = parameter - lr * g / (sqrt(v) + epsilon)

    Keras from 2.11 on has epsilon inside the root, where it makes 3e-4 the smallest divisor: gradients below that, as
    the words of an embedding have, then move their parameters by far less: the IMDB convnet took ten epochs to a
    validation accuracy of 0.84, and six with epsilon here.

    ``parameters`` are tensors or parameter groups, as torch's optimizers take them.
    """
    # One call for all tensors (foreach) takes a convnet's eight small ones 84 µs on a CPU instead of 109.
    return RMSprop(parameters, lr=lr, alpha=0.9, eps=1e-7, foreach=True)


class RMSprop(torch.optim.RMSprop):
    """:class:`torch.optim.RMSprop`, which updates contiguous parameters by a kernel of one pass.

    Served are float32 on the CPU and float32, float16 and bfloat16 on a GPU, there ``capturable`` too. Arguments, state
    and results are torch's, but for the last bit of a square root and, on a GPU, of products that are added up. Other
    parameters, and groups with momentum, weight decay or any of ``centered``, ``maximize``, ``differentiable`` or a
    tensor as ``lr``, are left to torch.
    """

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        """Collect what torch is to update, as torch's does, without what the kernel has updated at once.

        torch's ``step`` calls this for each group. So hooks, closures and the rest of it are torch's own; a torch that
        works otherwise has nothing taken from its lists.
        """
        result = super()._init_group(group, *lists)
        if len(lists) == 6 and _is_plain(group):
            _update(group, *lists)
        return result


def _is_plain(group: dict[str, Any]) -> bool:
    unusual = ("momentum", "weight_decay", "centered", "maximize", "differentiable")
    usual = not any(group[name] for name in unusual) and isinstance(group["lr"], (float, int))
    return usual and not torch.compiler.is_compiling()


def _update(
    group: dict[str, Any],
    parameters: list[Tensor],
    gradients: list[Tensor],
    mean_squares: list[Tensor],
    _momenta: list[Tensor],
    _means: list[Tensor],
    steps: list[Tensor],
) -> None:
    """Update the parameters that a kernel serves, and take them out of the lists."""
    three = zip(parameters, gradients, mean_squares, strict=True)
    floors = [_floor_of(*one, capturable=group["capturable"]) for one in three]
    for floor in dict.fromkeys(one for one in floors if one is not None):
        chosen = [
            [one for one, mine in zip(of, floors, strict=True) if mine == floor]
            for of in (parameters, gradients, mean_squares, steps)
        ]
        kernel = backends.load(f"seqconv.kernels.{floor[0]}.rmsprop")
        kernel.rmsprop_step(*chosen[:3], rate=group["lr"], decay=group["alpha"], epsilon=group["eps"])
        torch._foreach_add_(chosen[3], 1)
    for tensors in (parameters, gradients, mean_squares, steps):
        tensors[:] = [one for one, floor in zip(tensors, floors, strict=True) if floor is None]


def _floor_of(
    parameter: Tensor, gradient: Tensor, mean_square: Tensor, *, capturable: bool
) -> tuple[str, torch.device] | None:
    """Return the floor that updates a parameter, and its device; ``None`` if torch has to."""
    three, device = (parameter, gradient, mean_square), parameter.device
    if unfollowed(*three) is not None or not all(one.is_contiguous() and one.device == device for one in three):
        return None
    if device.type == "cpu" and MISSING is None and not capturable:
        return ("numba", device) if all(one.dtype == torch.float32 for one in three) else None
    on_gpu = refuse_device(device) is None and parameter.dtype in TRITONS and gradient.dtype == parameter.dtype
    return ("triton", device) if on_gpu and mean_square.dtype == parameter.dtype else None
