"""What tests of the conv stack's calls share: torch's composition, arguments, layouts, exact numbers, comparison."""

import itertools

import torch
import torch.nn.functional as F

from seqconv.functional import conv1d_relu_global_max_pool1d, conv1d_relu_max_pool1d

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CONVOLUTIONS = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for stride, padding, dilation, groups in itertools.product((1, 2, 3), (0, 2, "same", "valid"), (1, 2), (1, 2))
    if stride == 1 or padding != "same"
]
POOLS = [
    {"pool_size": 1},
    {"pool_size": 2},
    {"pool_size": 3, "pool_stride": 1},
    {"pool_size": 2, "pool_stride": 3, "pool_padding": 1},
    {"pool_size": 4, "pool_stride": 2, "pool_padding": 2, "pool_dilation": 1},
    {"pool_size": 3, "pool_stride": 2, "pool_padding": 1, "pool_dilation": 2},
    {"pool_size": 2, "pool_dilation": 3},
    None,
]


def composition(input, weight, bias, pool, **convolution):
    """Return what torch computes; ``pool`` is ``None`` for the global maximum."""
    activation = F.relu(F.conv1d(input, weight, bias, **convolution))
    if pool is None:
        return activation.max(dim=-1).values
    pool = {"pool_stride": None, "pool_padding": 0, "pool_dilation": 1, "ceil_mode": False, **pool}
    size, stride, padding, dilation, ceil_mode = (
        pool[name] for name in ("pool_size", "pool_stride", "pool_padding", "pool_dilation", "ceil_mode")
    )
    return F.max_pool1d(activation, size, stride, padding, dilation, ceil_mode)


def ours(input, weight, bias, pool, **options):
    """Return what seqconv computes."""
    if pool is None:
        return conv1d_relu_global_max_pool1d(input, weight, bias, **options)
    return conv1d_relu_max_pool1d(input, weight, bias, **pool, **options)


def whole(*shape, dtype=torch.float32, largest=3):
    """Return small whole numbers: every sum of their products is exact in any order, and ties abound."""
    return torch.randint(-largest, largest + 1, shape[0] if shape and isinstance(shape[0], tuple) else shape).to(dtype)


def same(one, other):
    """Tell whether two tensors agree to the bit, the sign of zero included, and are NaN in the same places."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    nan = one.isnan()
    as_bits = BITS[one.element_size()]
    bits = [torch.where(nan, 0, tensor.contiguous()).view(as_bits) for tensor in (one, other)]
    return torch.equal(nan, other.isnan()) and torch.equal(*bits)


def results(function, tensors, upstream=None):
    """Return a function's result and its gradients for ``tensors``; ``upstream`` changes what is sent back."""
    leaves = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
    result = function(*leaves)
    weighting = torch.randint(-3, 4, result.shape, generator=torch.manual_seed(1)).to(result.dtype)
    weighting = weighting if upstream is None else upstream(weighting)
    return result.detach(), *torch.autograd.grad(result, leaves, weighting)


def assert_same(functions, tensors, upstream=None):
    """Compare two functions of ``tensors``, forward and in every gradient, to the bit."""
    outcomes = [results(function, tensors, upstream) for function in functions]
    names = ("result", *(f"gradient {index}" for index in range(len(tensors))))
    for name, one, other in zip(names, *outcomes, strict=True):
        assert same(one, other), (name, (one.double() - other.double()).abs().max(), one, other)


def has_clear_argmax(input, weight, bias, pool_size, gap=1e-4):
    """Return where in the result a maximum exceeds all else, 0 too, by so much that float32 has the same argmax."""
    activation = F.conv1d(input.double(), weight.double(), bias.double()).relu()
    if pool_size is None:
        windows = activation.unsqueeze(2)
    else:
        windows = activation[..., : activation.size(2) // pool_size * pool_size].unflatten(2, (-1, pool_size))
    highest = F.pad(windows, (0, 1)).topk(2, -1).values
    clear = highest[..., 0] - highest[..., 1] > gap
    return clear.squeeze(2) if pool_size is None else clear


def error_ratios(function, torchs, tensors, upstream):
    """Return the largest and the root mean square error over those of ``torchs``, of the result and each gradient.

    Both are functions of ``tensors``, float32; what is exact, ``torchs`` tells in float64.
    """

    def step(function, tensors):
        result = function(*(leaves := [tensor.detach().requires_grad_() for tensor in tensors]))
        return result.detach(), *torch.autograd.grad(result, leaves, upstream.to(result.dtype))

    exact = step(torchs, [tensor.double() for tensor in tensors])
    for value, *both in zip(exact, step(function, tensors), step(torchs, tensors), strict=True):
        mine, theirs = (one.double() - value for one in both)
        yield float(mine.abs().max() / theirs.abs().max()), float(mine.norm() / theirs.norm())


def median_ratios(draw, seeds=range(3)):
    """Return the medians of :func:`error_ratios` over seeds; ``draw(seed)`` gives its arguments."""
    draws = torch.tensor([list(error_ratios(*draw(seed))) for seed in seeds])
    return draws.median(0).values.tolist()


def wide_layer(seed, samples, channels, length, outputs, size, pool_size):
    """Return input, weight, bias and the gradient of the result, 0 where float32 may choose another position."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, channels, length, generator=generator)
    w = torch.randn(outputs, channels, size, generator=generator) / (channels * size) ** 0.5
    b = torch.randn(outputs, generator=generator)
    clear = has_clear_argmax(x, w, b, pool_size)
    return x, w, b, torch.randn(clear.shape, generator=generator) * clear


def channels_last(input):
    """Return the same numbers with neighbouring channels."""
    return input.transpose(-1, -2).contiguous().transpose(-1, -2)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "batch_last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "every_second_position": lambda x: x.repeat_interleave(2, -1)[..., 1::2],
    "every_second_channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "channels_of_a_wider_tensor": lambda x: channels_last(torch.cat([x, x, x], 1))[:, 4:8],
    "one_sample_expanded": lambda x: x[:1].expand(3, -1, -1),
    "one_channel_expanded": lambda x: x[:, :1].expand(-1, 4, -1),
    "one_position_expanded": lambda x: x[..., :1].expand(-1, -1, 13),
    "overlapping_windows": lambda x: x.flatten()[:60].unfold(0, 13, 5)[:8].unflatten(0, (2, 4)),
    "flipped": lambda x: x.flip(-1),
    "unbatched": lambda x: x[0],
    "unbatched_channels_last": lambda x: channels_last(x)[1],
    "one_sample": lambda x: x[1:],
    "no_samples": lambda x: x[:0],
}
