"""How every layer behaves towards tools that go through a model and change each of its modules."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn, Self

from torch import nn

__all__ = ["LEAF", "Fused", "FusedConv1d"]

# What torch.fx's tracers read from a module, not from its class: those of torch.nn are leaves, calls of the module in
# the graph. No module's name, and none that torch.compile would take for torch's (there it is "torch.nn.").
LEAF = "torch.nn: seqconv"

# Tools that take an nn.Conv1d for a convolution and nothing else, by the package of their code.
REFUSED = {
    "torch.nn.utils.fusion": "a norm behind it cannot be folded into its weight: ReLU and maximum stand between",
    "torch.utils.mkldnn": "to_mkldnn would put a convolution without its ReLU and maximum in its place",
    "peft": "LoRA's convolutions would be added to its result, behind ReLU and maximum; register a parametrization of "
    "its weight (torch.nn.utils.parametrize)",
}


class Fused(nn.Module):
    """A layer with its own kernels: a leaf for ``torch.fx``, not quantised, and without TorchScript."""

    def __new__(cls, *arguments: Any, **_options: Any) -> Self:
        """Raise ``TypeError`` for a module in place of sizes, before Python counts which of these are missing."""
        for one in arguments:
            if isinstance(one, nn.Module):
                shared = f"call {cls.__name__}.from_torch, or " if hasattr(cls, "from_torch") else ""
                raise TypeError(
                    f"{cls.__name__} is made from sizes, got {type(one).__name__}: to convert a module, {shared}make "
                    "the layer from its sizes and options (in_channels=conv.in_channels, ...) and copy its parameters "
                    "with layer.load_state_dict(conv.state_dict()), or where they are a child's with that of layer.conv"
                )
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.__module__ = LEAF

    @property
    def qconfig(self) -> None:
        """``None``, quantisation's word for a module that stays, with its children, in floating point.

        ``prepare``, ``prepare_qat``, ``quantize_dynamic`` and ``prepare_fx`` set it on every module: here that only
        warns.
        """
        return None

    @qconfig.setter
    def qconfig(self, _value: Any) -> None:
        warnings.warn(
            f"{type(self).__name__} is not quantised: it stays in floating point (put torch's own layers in its place "
            "to have them quantised)",
            stacklevel=3,
        )

    @qconfig.deleter
    def qconfig(self) -> None:
        pass

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise: :func:`torch.jit.script` asks for what it can compile."""
        raise RuntimeError(
            f"{type(self).__name__} does not support TorchScript: use torch.compile or torch.export (or, for a file "
            "that needs no Python, torch.jit.trace, which records torch's own operations)"
        )


class FusedConv1d(Fused, nn.Conv1d):
    """A convolution by its parameters, not by its result: tools that take it for a plain convolution are stopped."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Set a parameter, as every assignment does. Raises ``TypeError`` if it comes of folding a norm."""
        self._refuse_tools("torch.nn.utils.fusion")
        super().register_parameter(name, param)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return what ``nn.Module`` does. Raises ``TypeError`` if ``to_mkldnn`` asks, which asks every module."""
        self._refuse_tools("torch.utils.mkldnn")
        return super().named_children()

    def _refuse_tools(self, *packages: str) -> None:
        """Raise ``TypeError`` if code of one of the packages has called what calls this, or what has called that."""
        frame = sys._getframe(1).f_back
        for caller in (frame, frame and frame.f_back):
            module = caller.f_globals.get("__name__", "") if caller else ""
            for package in packages:
                if f"{module}.".startswith(f"{package}."):
                    raise TypeError(f"{type(self).__name__} is an nn.Conv1d with more behind it: {REFUSED[package]}")
