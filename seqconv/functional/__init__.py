"""The operations as functions of tensors: checked, differentiable, and served by the backend that fits the call."""

from seqconv.functional.conv import (
    conv1d_relu_global_max_pool1d,
    conv1d_relu_max_pool1d,
    embedding_conv1d_relu_global_max_pool1d,
    embedding_conv1d_relu_max_pool1d,
    window_conv1d_relu_global_max_pool1d,
    window_conv1d_relu_max_pool1d,
)
from seqconv.functional.norm import conv1d_batch_norm_relu_global_max_pool1d, conv1d_batch_norm_relu_max_pool1d
from seqconv.functional.recurrent import gru, lstm
from seqconv.functional.several import embedding_conv1ds_relu_global_max_pool1d

__all__ = [
    "conv1d_batch_norm_relu_global_max_pool1d",
    "conv1d_batch_norm_relu_max_pool1d",
    "conv1d_relu_global_max_pool1d",
    "conv1d_relu_max_pool1d",
    "embedding_conv1d_relu_global_max_pool1d",
    "embedding_conv1d_relu_max_pool1d",
    "embedding_conv1ds_relu_global_max_pool1d",
    "gru",
    "lstm",
    "window_conv1d_relu_global_max_pool1d",
    "window_conv1d_relu_max_pool1d",
]
