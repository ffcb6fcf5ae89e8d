"""Fused 1-D convnet kernels for sequences, behind torch modules that drop into any model."""

from seqconv import functional
from seqconv.backends import BackendError, Explanation
from seqconv.explanation import ModelExplanation, explain
from seqconv.functional.folded import clear_cache, frozen
from seqconv.fusion import FusionReport, fuse, fusion_report, prepare, unfuse
from seqconv.layers import (
    GRU,
    LSTM,
    ConvBatchNormReLUGlobalMaxPool1d,
    ConvBatchNormReLUMaxPool1d,
    ConvReLUGlobalMaxPool1d,
    ConvReLUMaxPool1d,
    EmbeddingConvReLUGlobalMaxPool1d,
    EmbeddingConvReLUMaxPool1d,
    EmbeddingConvsReLUGlobalMaxPool1d,
    Windows,
)
from seqconv.numerics import are_fast_products_enabled, set_fast_products
from seqconv.sliding import SlidingReport, Stream, sliding_inference
from seqconv.warmup import warmup

__all__ = [
    "GRU",
    "LSTM",
    "BackendError",
    "ConvBatchNormReLUGlobalMaxPool1d",
    "ConvBatchNormReLUMaxPool1d",
    "ConvReLUGlobalMaxPool1d",
    "ConvReLUMaxPool1d",
    "EmbeddingConvReLUGlobalMaxPool1d",
    "EmbeddingConvReLUMaxPool1d",
    "EmbeddingConvsReLUGlobalMaxPool1d",
    "Explanation",
    "FusionReport",
    "ModelExplanation",
    "SlidingReport",
    "Stream",
    "Windows",
    "are_fast_products_enabled",
    "clear_cache",
    "data",
    "explain",
    "frozen",
    "functional",
    "fuse",
    "fusion_report",
    "prepare",
    "set_fast_products",
    "sliding_inference",
    "unfuse",
    "warmup",
]

__version__ = "0.1.0"

from seqconv import data
