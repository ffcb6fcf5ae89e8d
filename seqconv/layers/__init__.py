"""The operations as torch modules: same arguments and ``state_dict`` as the torch layers they stand for."""

from seqconv.layers.conv import ConvReLUGlobalMaxPool1d, ConvReLUMaxPool1d
from seqconv.layers.embedding import EmbeddingConvReLUGlobalMaxPool1d, EmbeddingConvReLUMaxPool1d
from seqconv.layers.embedding_convs import EmbeddingConvsReLUGlobalMaxPool1d
from seqconv.layers.norm import ConvBatchNormReLUGlobalMaxPool1d, ConvBatchNormReLUMaxPool1d
from seqconv.layers.recurrent import GRU, LSTM
from seqconv.layers.windows import Windows

__all__ = [
    "GRU",
    "LSTM",
    "ConvBatchNormReLUGlobalMaxPool1d",
    "ConvBatchNormReLUMaxPool1d",
    "ConvReLUGlobalMaxPool1d",
    "ConvReLUMaxPool1d",
    "EmbeddingConvReLUGlobalMaxPool1d",
    "EmbeddingConvReLUMaxPool1d",
    "EmbeddingConvsReLUGlobalMaxPool1d",
    "Windows",
]
