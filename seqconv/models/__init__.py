"""The notebook's models, their rivals and the baselines of both tasks, initialised as the notebook's framework does."""

from seqconv.models.imdb import BagOfEmbeddings, ImdbConvnet, ImdbLSTM, MajorityClass
from seqconv.models.initialisation import initialise
from seqconv.models.jena import ConvGRU, Dense, JenaConvnet, JenaGRU, TemperatureNow
from seqconv.models.source import WindowSource
from seqconv.models.textcnn import TextCNN

__all__ = [
    "BagOfEmbeddings",
    "ConvGRU",
    "Dense",
    "ImdbConvnet",
    "ImdbLSTM",
    "JenaConvnet",
    "JenaGRU",
    "MajorityClass",
    "TemperatureNow",
    "TextCNN",
    "WindowSource",
    "initialise",
]
