"""What the tests of the floors' convolutions with a batch norm share: operands, torch's composition, comparison."""

import math

import torch
import torch.nn.functional as F

from seqconv.kernels.geometry import Pool
from seqconv.kernels.norm import Norm

ALL = (True,) * 5


def operands(outputs, channels=4, groups=1, size=3, samples=5, length=151, mean=0.0):
    """Return input, weight, bias, gamma and beta in float64, and what float32 rounds them to is float32."""
    generator = torch.Generator().manual_seed(outputs)
    shapes = (samples, channels, length), (outputs, channels // groups, size), (outputs,), (outputs,), (outputs,)
    found = [torch.randn(shape, generator=generator).double() for shape in shapes]
    found[0] += mean
    found[3][0] = 0  # a channel that is beta everywhere
    return found


def composed(leaves, convolution, pool, upstream=None):
    """Return the result, gradients and the gradient of the convolution of torch's composition in the leaves' dtype."""
    input, weight, bias, gamma, beta = (one.detach().clone().requires_grad_() for one in leaves)
    y = F.conv1d(input, weight, bias, convolution.stride, convolution.padding[0], *convolution[2:])
    z = F.relu(F.batch_norm(y, None, None, gamma, beta, training=True))
    output = z.max(2).values if pool is None else F.max_pool1d(z, *pool[:5])
    upstream = upstream_of(output) if upstream is None else upstream.to(output.dtype)
    *gradients, dy = torch.autograd.grad(output, [input, weight, bias, gamma, beta, y], upstream)
    return [output.detach(), *gradients], dy, y.detach()


def upstream_of(output):
    return torch.linspace(-1, 2, output.numel(), dtype=torch.float32).reshape(output.shape).to(output)


def ours(floor, leaves, convolution, pool, wanted=ALL, upstream=None):
    """Return a floor's result with its gradients, and what it keeps between them."""
    input, weight, bias, gamma, beta = leaves
    norm = Norm(None, None, gamma, beta)
    output, saved = floor.forward(input, weight, bias, norm, convolution, pool, want_argmax=True)
    upstream = upstream_of(output) if upstream is None else upstream
    gradients = floor.backward(upstream, saved, input, weight, bias, convolution, pool, wanted=wanted)
    return [output, *gradients], saved


def assert_near(mine, exact, dy, taps):
    """Every number is a sum of so many terms, or of a channel's positions: roundings of a random walk, times 16.

    The bias's gradient is what rounding leaves of a sum that is zero.
    """
    eps = torch.finfo(mine[0].dtype).eps
    for i, (one, other) in enumerate(zip(mine, exact, strict=True)):
        size = dy.abs().sum((0, 2)).max() if i == 3 else other.abs().max()
        tolerance = 16 * eps * math.sqrt(max(taps, dy.size(0) * dy.size(2))) * size.item() + 1e-300
        assert (one.double() - other).abs().max() <= tolerance, i


def assert_as_precise(floor, leaves, convolution, which):
    """Check that errors are at most twice those of torch's own float32; return what is kept."""
    exact, _, _ = composed([one.double() for one in leaves], convolution, Pool(2, 2))
    theirs, _, _ = composed(leaves, convolution, Pool(2, 2))
    mine, saved = ours(floor, leaves, convolution, Pool(2, 2))
    for i in which:
        errors = [(one[i].double() - exact[i]).norm() for one in (mine, theirs)]
        assert errors[0] <= 2 * errors[1] + 1e-6 * exact[i].norm(), i
    return saved
