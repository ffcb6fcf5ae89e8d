"""``torch.fx``: an operation on a tracer's proxies is one node of its graph, as torch's own operations are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx

__all__ = ["Proxy", "TracedCall", "record"]

# What stands for a value while a model is traced. Typed as Any: a type checker knows that no tensor is a Proxy.
Proxy: Any = fx.Proxy


def record(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the proxy of ``function(*arguments, **options)``, one argument of which is a proxy."""
    tracer = next(value for value in arguments if isinstance(value, Proxy)).tracer
    return tracer.create_proxy("call_function", function, arguments, options)


class TracedCall(NamedTuple):
    """A call that is not run, but recorded; its arguments are checked when the graph is run."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self, backend: str) -> Any:
        """Record the call."""
        return record(self.function, *self.arguments, **self.options, backend=backend)
