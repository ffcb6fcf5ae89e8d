"""Layers on gathered rows: the kernels' two passes by their names, and what they must give."""

import copy
from contextlib import contextmanager
from unittest import mock

import torch

from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Tokens, Windows

PLANS = ["direct", "folded", "ready"]


@contextmanager
def pooled_apart(is_so):
    """Pool windows from a stored activation, or as they are computed, wherever they are pooled at all."""
    from seqconv.kernels.triton import forward, gather

    def chosen(_costs, pool, _operations):
        return is_so and pool != forward.POSITIONS

    with mock.patch.object(forward, "pools_apart", chosen), mock.patch.object(gather, "pools_apart", chosen):
        yield


def tf32(tensor):
    """Return float32 numbers rounded to the nearest TF32 number; infinities and NaN stay."""
    rounded = ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(tensor.isfinite(), rounded, tensor)


def reordered(upstream):
    """Return by how much float32 sums of each channel's upstream gradients may differ if added in another order.

    Each of ``n - 1`` additions rounds by half an epsilon of at most the sum of all magnitudes, on both sides.
    """
    magnitudes = upstream.double().abs().transpose(0, 1).flatten(1)
    return torch.finfo(torch.float32).eps * (magnitudes.size(1) - 1) * magnitudes.sum(1)


class Case:
    """One layer on rows of ``table``: by tokens ``(N, L)``, or by ``starts``, a length and a step."""

    def __init__(self, index, table, convolution, pool, *, padding_idx=None, length=None, step=None):
        self.index, self.table, self.convolution, self.pool = index, table, convolution, pool
        self.options = (padding_idx,) if length is None else (length, step)
        self.of_tokens = length is None

    def rounded(self):
        """Return the case with its table's numbers rounded to TF32."""
        other = copy.copy(self)
        other.table = tf32(self.table)
        return other

    def source(self, table=None, index=None):
        table, index = self.table if table is None else table, self.index if index is None else index
        return Tokens(index, table, *self.options) if self.of_tokens else Windows(table, index, *self.options)

    def forward(self, w, b, plan=None, want_argmax=True):
        from seqconv.kernels.triton import conv_pool

        options = {"folded": conv_pool.fold(self.table, w)} if plan == "ready" else {"plan": plan}
        return conv_pool.forward(self.source(), w, b, self.convolution, self.pool, want_argmax=want_argmax, **options)

    def backward(self, upstream, argmax, w, wanted=(True, True, True), plan=None):
        from seqconv.kernels.triton import conv_pool

        options = {"wanted": wanted, "plan": "folded" if plan == "ready" else plan}
        return conv_pool.backward(upstream, argmax, self.source(), w, self.convolution, self.pool, **options)

    def step(self, w, b, upstream, plan=None):
        """Return the result and all gradients."""
        out, argmax = self.forward(w, b, plan)
        return out, *self.backward(upstream, argmax, w, plan=plan)

    def reference(self, table, w, b, index=None):
        return reference.compose(self.source(table, index), w, b, self.convolution, self.pool)

    def expected(self, w, b, upstream=None):
        """Return the reference's result, and its gradients of table, weight and bias, in float64 on the CPU."""
        b = w.new_zeros(w.size(0)) if b is None else b
        tensors = [one.detach().cpu().double().requires_grad_() for one in (self.table, w, b)]
        out = self.reference(*tensors, index=self.index.cpu())
        if upstream is None:
            return out.detach()
        return out.detach(), torch.autograd.grad(out, tensors, upstream.cpu().double())
