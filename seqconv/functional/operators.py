"""Operators of ``torch.library``, registered with less around a call than ``torch.library.custom_op`` has.

That looks at every call whether results alias, and sees to arguments that an operator changes: ours do neither, which
``opcheck`` tests. A call that does nothing took 15 microseconds as a ``custom_op``, 12 as an operator of this module
with a derivative, and 6 without one: what nobody differentiates has an operator of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["operator", "refuse_to_differentiate"]

NAMESPACE = "seqconv"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    differentiate: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that registers a function as the operator ``seqconv::name``, and returns the operator.

    The function's annotations are its schema; it changes no argument, and no result is a view of one. ``fake`` makes
    empty results. ``differentiate`` and ``setup_context`` are those of :func:`torch.library.register_autograd`. Without
    them torch takes the results for constants: see :func:`refuse_to_differentiate`.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        full = f"{NAMESPACE}::{name}"
        torch.library.register_fake(full, fake, lib=_library)
        if differentiate is not None:
            torch.library.register_autograd(full, differentiate, setup_context=setup_context, lib=_library)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register


def refuse_to_differentiate(_ctx: Any, *_gradients: Any) -> None:
    """Raise ``RuntimeError``: the derivative of operators that are derivatives themselves."""
    raise RuntimeError(
        "the kernels have no second derivative: pass backend='reference', or seqconv.unfuse a fused model, to have "
        "torch's own operations"
    )
