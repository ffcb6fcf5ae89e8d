"""Calls like an earlier one, done again without what leads up to their launches.

What a call allocates and launches follows from the shapes, strides and dtypes of its tensors, from its options, and
from torch's switch for float32 products. The first call of a kind notes it; the next ones allocate the same and hand
the same numbers to the compiled kernels. To find those anew, Triton takes 20 to 50 microseconds of the host for every
launch, and sizes and tiles take as long again; a call that is replayed takes a few.

A function that is :func:`replayed` may touch memory through :func:`empty`, :func:`compute` and :func:`launch` alone: of
anything else it does nothing is noted. What it launches must be tensors that it was given, made by these functions, or
views of them that begin where they do; a call that has others is not noted. Calls run as they stand, too, on other
devices than NVIDIA's, while a launch hook of Triton's is set (profilers have one), and where a tensor's address is not
a multiple of 16 as it was before: kernels are compiled for that.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..source import Dense, Tokens, Windows
from .groups import constants
from .launch import imagined, on_device

__all__ = [
    "Tape",
    "compute",
    "empty",
    "forget",
    "generation",
    "is_hooked",
    "launch",
    "layouts",
    "remembered",
    "replayed",
    "serves",
]

MOST = 1024  # calls of a function that are remembered; texts of any length would be more and more
NVIDIA = torch.version.hip is None
ALIGNED = 16  # bytes: Triton compiles another kernel where a tensor does not begin at a multiple

# Asked at every call: torch's switch is read past its properties, which take 2 microseconds, and the device past what
# looks whether CUDA is in use.
_precision = torch._C._get_fp32_precision_getter
_current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)

# What torch.empty_strided comes to, as Inductor's code calls it: on the current device, in less than half the time.
_empty_strided = {
    "cpu": torch._C._dynamo.guards._empty_strided_cpu,  # type: ignore[attr-defined]
    "cuda": torch._C._dynamo.guards._empty_strided_cuda,  # type: ignore[attr-defined]
}

SOURCES = (Dense, Tokens, Windows)  # whose fields are looked at as if they were arguments

P = ParamSpec("P")
R = TypeVar("R")


def replayed(function: Callable[P, R]) -> Callable[P, R]:
    """Have calls of a function replayed; it returns tensors or ``None``, one or a tuple of them."""
    tapes: dict[tuple[Any, ...], Tape] = {}
    remembered.append(tapes)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        tensors, kind = _kind_of(arguments, options)
        if _thread.tape is not None or not serves(tensors[0]):
            return function(*arguments, **options)
        tape = tapes.get(kind)
        if tape is not None and not is_hooked():
            return tape.replay(tensors)
        tape = _thread.tape = Tape(tensors)
        try:
            result = function(*arguments, **options)
            if tape.finish(result):
                if len(tapes) >= MOST:
                    tapes.clear()
                tapes[kind] = tape
        finally:
            _thread.tape = None
        return result

    def tape_of(*arguments: Any, **options: Any) -> Tape | None:
        return tapes.get(_kind_of(arguments, options)[1])

    call.tape_of = tape_of  # type: ignore[attr-defined]
    return call


def layouts(tensors: list[Tensor]) -> list[Any]:
    """Return what of a call's tensors, and of torch's switch, tells which calls are alike."""
    found: list[Any] = [tensors[0].get_device(), _precision("cuda", "conv")]
    for one in tensors:
        found += (one.shape, one.stride(), one.dtype)
    return found


def _kind_of(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Return the tensors among a call's arguments, and what they and the others tell of the call."""
    tensors: list[Tensor] = []
    others: list[Any] = [*options]
    for given in (*arguments, *options.values()):
        for one in given if isinstance(given, SOURCES) else (given,):
            if isinstance(one, Tensor):
                tensors.append(one)
                others.append(Tensor)
            else:
                others.append(one)
    return tensors, (*layouts(tensors), *others)


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Return ``like.new_empty(shape, dtype=dtype)``."""
    made = like.new_empty(shape, dtype=dtype)
    if _thread.tape is not None:
        _thread.tape.add(_Empty(made), made)
    return made


def compute(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, a tensor or a tuple of them; the function must hold no tensors itself."""
    result = function(*arguments)
    if _thread.tape is not None:
        made = result if isinstance(result, tuple) else (result,)
        _thread.tape.add(_Compute(function, *_thread.tape.apart(arguments)), *made)
    return result


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
    """Launch ``kernel[grid](*arguments, **named)``, groups as constants."""
    if (gpu := imagined()) is not None:
        gpu.note(kernel, grid, arguments, named)
        return
    named = {name: constants(one) if isinstance(one, tuple) else one for name, one in named.items()}
    compiled = kernel[grid](*arguments, **named)
    if _thread.tape is not None:
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        options = {name: value for name, value in named.items() if name not in kernel.arg_names}
        step = _Launch(kernel, grid, options, *_thread.tape.apart([given[name] for name in kernel.arg_names]))
        step.remember(compiled, [one.data_ptr() for one in _thread.tape.tensors])
        _thread.tape.add(step)


remembered: list[dict[tuple[Any, ...], Any]] = []  # what :func:`forget` empties


_generation = 0


def generation() -> int:
    """Return how often calls were forgotten."""
    return _generation


def forget() -> None:
    """Forget all calls: for those who change what follows from a call, as the tiles of a layer."""
    global _generation
    _generation += 1
    for tapes in remembered:
        tapes.clear()


def serves(tensor: Any) -> bool:
    """Tell whether calls on a tensor's device are replayed; not if it is no tensor."""
    return NVIDIA and isinstance(tensor, Tensor) and tensor.is_cuda


class Tape:
    """What a call did. Its tensors are numbered: those it was given, then those it made, in order."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors.copy()  # of the call that is noted, held until its end: no address is another's
        self.steps: list[Any] = []
        self.made_by: list[Any] = [None] * len(tensors)
        self.results: tuple[int | None, ...] = ()
        self.is_tuple, self.is_sound = False, True

    @property
    def may_replay(self) -> bool:
        """Whether nobody is told of launches, as Triton's own would be."""
        return not is_hooked()

    def add(self, step: Any, *made: Tensor) -> None:
        """Note a step and what it made."""
        self.steps.append(step)
        self.tensors += made
        self.made_by += [step] * len(made)

    def number(self, tensor: Tensor) -> int:
        """Return a tensor's number, or that of the one it is a view of."""
        found = [number for number, one in enumerate(self.tensors) if one is tensor]
        found = found or [number for number, one in enumerate(self.tensors) if one.data_ptr() == tensor.data_ptr()]
        self.is_sound &= len(found) == 1
        return found[0] if found else 0

    def apart(self, arguments: Any) -> tuple[list[Any], list[tuple[int, int]]]:
        """Return arguments without tensors, and the places and numbers of these."""
        slots = [(place, self.number(one)) for place, one in enumerate(arguments) if isinstance(one, Tensor)]
        return [None if isinstance(one, Tensor) else one for one in arguments], slots

    def finish(self, result: Any) -> bool:
        """Note what the call returned; tell whether it may be replayed."""
        self.is_tuple = isinstance(result, tuple)
        returned = result if self.is_tuple else (result,)
        self.results = tuple(None if one is None else self.number(one) for one in returned)
        for one, number in zip(returned, self.results, strict=True):
            if number is not None and one is not self.tensors[number]:
                step, whole = self.made_by[number], self.tensors[number]
                self.is_sound &= isinstance(step, _Empty) and (one.numel(), one.dtype) == (whole.numel(), whole.dtype)
                if self.is_sound:  # a view of all of it: made as such at once
                    step.shape, step.stride = tuple(one.shape), one.stride()
        self.is_sound &= all(step.is_sound for step in self.steps)
        self.tensors = self.made_by = []
        return self.is_sound

    def replay(self, tensors: list[Tensor]) -> Any:
        """Do the same with other tensors."""
        device = tensors[0].get_device()
        if device >= 0 and device != _current_device():
            with on_device(tensors[0]):
                return self.replay(tensors)
        pointers = [one.data_ptr() for one in tensors]
        for step in self.steps:
            step(tensors, pointers)
        if not self.is_tuple:
            return None if self.results[0] is None else tensors[self.results[0]]
        return tuple([None if number is None else tensors[number] for number in self.results])


class _Empty:
    """Memory, made with the shape and strides in which it is returned."""

    is_sound = True

    def __init__(self, made: Tensor) -> None:
        self.make = _empty_strided[made.device.type]
        self.shape, self.stride, self.dtype = tuple(made.shape), made.stride(), made.dtype

    def __call__(self, tensors: list[Tensor], pointers: list[int]) -> None:
        made = self.make(self.shape, self.stride, self.dtype)
        tensors.append(made)
        pointers.append(made.data_ptr())


class _Compute:
    """Torch's own work."""

    is_sound = True

    def __init__(self, function: Callable[..., Any], arguments: list[Any], slots: list[tuple[int, int]]) -> None:
        self.function, self.arguments, self.slots = function, arguments, slots

    def __call__(self, tensors: list[Tensor], pointers: list[int]) -> None:
        arguments = self.arguments.copy()
        for place, number in self.slots:
            arguments[place] = tensors[number]
        result = self.function(*arguments)
        made = result if isinstance(result, tuple) else (result,)
        tensors += made
        pointers += [one.data_ptr() for one in made]


LEADING = 9  # what a launcher is given before the kernel's arguments


class _Launch:
    """A launch of a kernel, with all its arguments but the tensors."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        options: dict[str, Any],
        arguments: list[Any],
        slots: list[tuple[int, int]],
    ) -> None:
        self.kernel, self.grid, self.options = kernel, grid, options
        # grid, stream, function, packed metadata; no launch metadata and no hooks; arguments, compile-time ones, too
        self.given = [*grid, *[1] * (3 - len(grid)), *[None] * (LEADING - 3), *arguments]
        self.slots = [(LEADING + place, number) for place, number in slots]
        self.compiled: dict[Any, tuple[Any, Any, Any, Any, int]] = {}

    @property
    def is_sound(self) -> bool:
        """Whether there is a kernel to be launched: interpreters, for one, have none."""
        return bool(self.compiled)

    def __call__(self, tensors: list[Tensor], pointers: list[int]) -> None:
        given, together = self.given.copy(), 0
        for place, number in self.slots:
            given[place] = pointer = pointers[number]
            together |= pointer
        compiled = self.compiled.get(self.alignments(pointers) if together % ALIGNED else None)
        if compiled is None:
            for place, number in self.slots:
                given[place] = tensors[number]
            self.remember(self.kernel[self.grid](*given[LEADING:], **self.options), pointers)
            return
        run, given[4], given[5], stream_of, device = compiled
        given[3] = stream_of(device)
        run(*given)

    def alignments(self, pointers: list[int]) -> tuple[bool, ...] | None:
        """Return which tensors begin at multiples of :data:`ALIGNED`, ``None`` for all."""
        which = tuple([pointers[number] % ALIGNED == 0 for _, number in self.slots])
        return None if all(which) else which

    def remember(self, compiled: Any, pointers: list[int]) -> None:
        """Note the kernel that Triton launched."""
        from triton.compiler import CompiledKernel
        from triton.runtime import driver

        if isinstance(compiled, CompiledKernel):
            active = driver.active
            found = (compiled.run, compiled.function, compiled.packed_metadata, active.get_current_stream)
            self.compiled[self.alignments(pointers)] = (*found, active.get_current_device())


class _Thread(threading.local):
    """The tape of the call that a thread notes, if any."""

    tape: Tape | None = None


_thread = _Thread()


def is_hooked() -> bool:
    """Tell whether Triton would call somebody at every launch."""
    knobs = _knobs()
    for hook in (knobs.launch_enter_hook, knobs.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return True
    return False


@functools.cache
def _knobs() -> Any:
    from triton import knobs

    return knobs.runtime
