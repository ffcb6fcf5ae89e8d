"""Models in the wild: their shapes and parameters are the published ones; all sides compute the same."""

from __future__ import annotations

import pytest
import torch

from benchmarks.models import WILD
from benchmarks.models.examples import PADDING, sentences
from tests.test_imports import ROOT

OUTPUTS = {
    "text_cnn": (2,), "char_cnn": (4,), "deepsea": (919,), "danq": (919,), "basset": (164,), "m5": (1, 10),
    "ecg_beats": (5,), "ecg_recordings": (4,), "har_cnn_lstm": (6,), "fcn": (2,), "imdb": (1,), "jena": (1,),
    "jena_conv_gru": (1,),
}  # fmt: skip
# Of DeepSEA and DanQ from Quang and Xie (2016), whose LSTM has one bias where torch's has two; of the notebook's models
# from the notebook, torch's GRU too having two; M5's follows from its
# layers, half a million as Dai et al. (2016) say.
PUBLISHED = {
    "deepsea": 52_843_119, "danq": 46_926_479 + 2 * 4 * 320, "imdb": 1_315_937, "jena": 12_609,
    "jena_conv_gru": 13_793, "m5": 559_114,
}  # fmt: skip


@pytest.mark.parametrize("name", WILD)
def test_shapes_and_parameters_are_the_published_ones(name):
    wild, generator = WILD[name], torch.Generator().manual_seed(0)
    model = wild.make()
    output = model(wild.inputs(2, generator))
    assert output.shape == (2, *OUTPUTS[name])
    loss = wild.loss(output, wild.targets(2, generator))
    assert loss.shape == ()
    loss.backward()
    assert all(one.grad is not None for one in model.parameters())
    if name in PUBLISHED:
        assert sum(one.numel() for one in model.parameters()) == PUBLISHED[name]
    assert wild.batch > 2


def test_sentences_are_words_of_the_vocabulary_padded_behind():
    tokens = sentences(50, torch.Generator().manual_seed(0), words=100, length=40)
    assert tokens.shape == (50, 40)
    assert 0 <= int(tokens.min()) < int(tokens.max()) < 100
    ends = (tokens != PADDING).sum(1)
    assert torch.equal(tokens != PADDING, torch.arange(40) < ends[:, None])
    assert 10 <= int(ends.min()) < int(ends.max()) <= 40


def test_nothing_of_seqconv_knows_the_models_nor_they_seqconv():
    for path in (ROOT / "seqconv").rglob("*.py"):
        assert "benchmarks.models" not in path.read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks" / "models").glob("*.py"):
        assert "import seqconv" not in (text := path.read_text(encoding="utf-8"))
        assert "from seqconv" not in text
