"""The fold of a batch norm on a GPU, or in the interpreter, against the reference in float64."""

import pytest
import torch

from seqconv.kernels.norm import Norm, folded
from seqconv.kernels.triton import norm as kernel


@pytest.mark.parametrize("shape", [(5, 3, 7), (1, 1, 1), (33, 130, 9)])
@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("missing", [(), ("bias",), ("weight",), ("bias", "weight", "norm_bias")])
def test_folds_as_the_reference_does(device, dtype, shape, missing):
    torch.manual_seed(0)
    weight, outputs = torch.randn(shape, device=device).to(dtype), shape[0]
    drawn = dict(zip(("bias", "mean", "weight", "norm_bias"), torch.randn(4, outputs, device=device), strict=True))
    given = {name: None if name in missing else one for name, one in drawn.items()}
    bias = None if given["bias"] is None else given["bias"].to(dtype)
    norm = Norm(given["mean"], torch.rand(outputs, device=device) + 0.5, given["weight"], given["norm_bias"])
    found = kernel.folded(weight, bias, *norm[:4], norm.eps)
    exact = folded(
        weight.double(), None if bias is None else bias.double(),
        Norm(*[None if one is None else one.double() for one in norm[:4]], eps=norm.eps),
    )  # fmt: skip
    eps = torch.finfo(dtype).eps
    for one, other in zip(found, exact, strict=True):
        assert one.dtype is dtype
        # In float32: six roundings of numbers as large as the sum's parts, then one of the dtype.
        torch.testing.assert_close(one.double(), other, rtol=eps, atol=8 * torch.finfo(torch.float32).eps * 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_layer_in_evaluation_mode_follows_every_tensor():
    import seqconv

    torch.manual_seed(0)
    layer = seqconv.ConvBatchNormReLUMaxPool1d(3, 8, 5, 2).cuda().eval()
    x = torch.randn(4, 3, 40, device="cuda")
    with torch.no_grad():
        for one in (None, *layer.state_dict().values()):
            if one is not None and one.is_floating_point():
                one.add_(0.5)
            plain = torch.max_pool1d(torch.relu(layer.norm(layer.conv(x))), 2)
            for _ in range(3):
                torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-4)
