"""TextCNN against the same model written in torch's own layers, in float64, and what its arguments may be."""

import pytest
import torch
from torch import nn

from seqconv import EmbeddingConvsReLUGlobalMaxPool1d, models

pytestmark = pytest.mark.usefixtures("floor")


class Plain(nn.Module):
    """Kim's model as one writes it in torch."""

    def __init__(self, num_words, embedding_dim, filters, kernel_sizes, dropout, num_classes, padding_idx):
        super().__init__()
        self.embedding = nn.Embedding(num_words, embedding_dim, padding_idx)
        self.convs = nn.ModuleList(nn.Conv1d(embedding_dim, filters, size) for size in kernel_sizes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(len(kernel_sizes) * filters, num_classes)

    def forward(self, tokens):
        embedded = self.embedding(tokens).transpose(1, 2)
        pooled = [torch.relu(conv(embedded)).max(-1).values for conv in self.convs]
        return self.head(self.dropout(torch.cat(pooled, 1)))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize(("filters", "kernel_sizes", "classes"), [(100, (3, 4, 5), 1), (7, [2, 2, 6, 1], 4)])
def test_equals_torch(filters, kernel_sizes, classes, padding_idx, dropout):
    """Sums of float64 in another order: of up to 6 * 16 products of numbers about 1, and 300 of them."""
    torch.manual_seed(3)
    ours = models.TextCNN(30, 16, filters, kernel_sizes, dropout, classes, padding_idx).double()
    theirs = Plain(30, 16, filters, kernel_sizes, dropout, classes, padding_idx).double()
    theirs.load_state_dict({name.removeprefix("features."): value for name, value in ours.state_dict().items()})
    tokens, weighting = torch.randint(30, (6, 40)), torch.randn(6, classes, dtype=torch.float64)
    outcomes = []
    for model in (ours, theirs):
        torch.manual_seed(4)  # the same dropout
        logits = model(tokens)
        assert logits.shape == ((6,) if classes == 1 and model is ours else (6, classes))
        (logits.reshape(6, classes) * weighting).sum().backward()
        outcomes.append([logits.reshape(6, classes), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if padding_idx is not None:
        assert not ours.features.embedding.weight.grad[padding_idx].any()


def test_takes_pretrained_vectors():
    vectors = torch.randn(30, 16)
    model = models.TextCNN(30, 16, filters=5)
    model.features = EmbeddingConvsReLUGlobalMaxPool1d.from_pretrained(vectors, 5, (3, 4, 5))
    model(torch.randint(30, (2, 9))).sum().backward()
    assert model.features.embedding.weight.grad is None
    assert all(conv.weight.grad.any() for conv in model.features.convs)


def test_drops_in_training_alone():
    model, tokens = models.TextCNN(30, 16, dropout=0.5), torch.randint(30, (2, 9))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_words": 0}, "num_words must be at least 1, got 0"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"filters": 0}, "filters must be at least 1, got 0"),
        ({"kernel_sizes": ()}, "kernel_sizes must be a list or tuple of at least one integer"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"dropout": 1.5}, "dropout must be a number between 0 and 1"),
        ({"padding_idx": 30}, "padding_idx must be between -30 and 29"),
        ({"backend": "gpu"}, "backend must be one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_rejects(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        models.TextCNN(**{"num_words": 30, **change})


@pytest.mark.parametrize("dropout", ["x", None, -0.1, 1.5])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ValueError, match=r"^dropout must be a number between 0 and 1, got "):
        models.TextCNN(9, dropout=dropout)
