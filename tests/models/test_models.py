"""The models: sizes as Keras counts them, initial weights as Keras draws them, and what they compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seqconv import models

# Keras' formulas: embedding V * E; convolution K * C * O + O; dense C * O + O; LSTM 4 * ((C + H) * H + H); GRU with
# reset_after 3 * ((C + H) * H + 2 * H). torch's LSTM has a second bias, 4 * H more.
IMDB = 10_000 * 128
COUNTS = {
    "ImdbConvnet": IMDB + (7 * 128 * 32 + 32) + (7 * 32 * 32 + 32) + (32 + 1),
    "ImdbLSTM": IMDB + 4 * ((128 + 32) * 32 + 32) + 4 * 32 + (32 + 1),
    "TextCNN": IMDB + sum(k * 128 * 100 + 100 for k in (3, 4, 5)) + (300 + 1),
    "BagOfEmbeddings": IMDB + (128 + 1),
    "JenaConvnet": (5 * 14 * 32 + 32) + 2 * (5 * 32 * 32 + 32) + (32 + 1),
    "JenaGRU": 3 * ((14 + 32) * 32 + 2 * 32) + (32 + 1),
    "ConvGRU": (5 * 14 * 32 + 32) + (5 * 32 * 32 + 32) + 3 * ((32 + 32) * 32 + 2 * 32) + (32 + 1),
    "Dense": (240 * 14 * 32 + 32) + (32 + 1),
}
IMDB_MODELS = [models.ImdbConvnet, models.ImdbLSTM, models.TextCNN, models.BagOfEmbeddings]
JENA_MODELS = [models.JenaConvnet, models.JenaGRU, models.ConvGRU, models.Dense]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(9)


def new(make):
    """Return a model without dropout of the notebook's vocabulary."""
    return make(10_000, dropout=0.0) if make is models.TextCNN else make()


@pytest.mark.parametrize("make", IMDB_MODELS + JENA_MODELS)
def test_counts_its_parameters(make):
    count = sum(parameter.numel() for parameter in new(make).parameters())
    assert count == COUNTS[make.__name__]
    written = {"ImdbConvnet": 1_315_937, "ImdbLSTM": 1_300_769, "JenaConvnet": 12_609}
    assert count == written.get(make.__name__, count)


@pytest.mark.parametrize("make", IMDB_MODELS + JENA_MODELS)
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_gives_one_number_a_sample(make, samples):
    model = new(make)
    if make in IMDB_MODELS:
        tokens = torch.randint(10_000, (samples, 60))
        assert model(tokens).shape == (samples,)
        assert torch.equal(model(tokens.int()), model(tokens))
    else:
        assert model(torch.randn(samples, 240, 14)).shape == (samples,)


@pytest.mark.parametrize(
    ("model", "make", "least"),
    [
        (models.ImdbConvnet(50), lambda n: torch.randint(50, (2, n)), 41),
        (models.TextCNN(50), lambda n: torch.randint(50, (2, n)), 5),
        (models.JenaConvnet(), lambda n: torch.randn(2, n, 14), 61),
        (models.ConvGRU(), lambda n: torch.randn(2, n, 14), 19),
    ],
    ids=["ImdbConvnet", "TextCNN", "JenaConvnet", "ConvGRU"],
)
def test_the_shortest_sequence_is_the_documented_one(model, make, least):
    assert model(make(least)).shape == (2,)
    with pytest.raises(ValueError, match=r"^(kernel|pool)_size must fit"):
        model(make(least - 1))


@pytest.fixture
def prepare(floor):
    """Give a model numbers whose sums are exact where they are added up in another order than torch's."""

    def prepare(model):
        models.initialise(model)
        if floor == "auto":
            model.double()
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -3.5, 3.5).data.round_()
        return model

    return prepare


def test_imdb_convnet_is_the_composition(prepare):
    model = prepare(models.ImdbConvnet(100))
    tokens = torch.randint(100, (4, 80))
    layers = nn.Sequential(
        nn.Conv1d(128, 32, 7), nn.ReLU(), nn.MaxPool1d(5), nn.Conv1d(32, 32, 7), nn.ReLU(), nn.AdaptiveMaxPool1d(1)
    )
    embedding, head = nn.Embedding(100, 128), nn.Linear(32, 1)
    for module in (layers, embedding, head):
        module.to(model.head.weight.dtype)
    embedding.load_state_dict(model.first.embedding.state_dict())
    layers[0].load_state_dict(model.first.conv.state_dict())
    layers[3].load_state_dict(model.second.state_dict())
    head.load_state_dict(model.head.state_dict())
    expected = head(layers(embedding(tokens).transpose(1, 2)).squeeze(-1)).squeeze(-1)
    assert torch.equal(model(tokens), expected)


def test_jena_convnet_is_the_composition(prepare, draw):
    model = prepare(models.JenaConvnet())
    windows = draw(4, 100, 14).to(model.head.weight.dtype)
    x = windows.transpose(1, 2)
    for layer in (model.first, model.second):
        x = F.max_pool1d(F.relu(F.conv1d(x, layer.weight, layer.bias)), 3)
    x = F.relu(F.conv1d(x, model.third.weight, model.third.bias)).amax(-1)
    assert torch.equal(model(windows), model.head(x).squeeze(-1))


def test_conv_gru_has_no_pool_behind_its_second_convolution():
    model = models.ConvGRU().eval()
    windows = torch.randn(4, 60, 14)
    x = F.max_pool1d(F.relu(F.conv1d(windows.transpose(1, 2), model.first.weight, model.first.bias)), 3)
    x = F.relu(F.conv1d(x, model.second.weight, model.second.bias))
    gru = nn.GRU(32, 32, batch_first=True)
    gru.load_state_dict(model.recurrent.gru.state_dict())
    _, state = gru(x.transpose(1, 2).contiguous())
    torch.testing.assert_close(model(windows), model.recurrent.head(state[-1]).squeeze(-1), rtol=0, atol=1e-6)


def test_conv_gru_drops_in_training_alone():
    model, windows = models.ConvGRU(), torch.randn(4, 60, 14)
    assert not torch.equal(model(windows), model(windows))
    assert (model.recurrent.gru.input_dropout, model.recurrent.gru.recurrent_dropout) == (0.1, 0.5)
    model.eval()
    assert torch.equal(model(windows), model(windows))
    plain = models.JenaGRU()
    assert torch.equal(plain(windows), plain(windows))


@pytest.mark.parametrize("make", IMDB_MODELS + JENA_MODELS)
def test_initial_weights(make):
    model = new(make)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)  # what is not drawn anew shows
    assert models.initialise(model) is model
    for module in model.modules():
        if isinstance(module, nn.Conv1d):
            outputs, inputs, size = module.weight.shape
            assert_uniform(module.weight, math.sqrt(6 / (inputs * size + outputs * size)))
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            assert_uniform(module.weight, math.sqrt(6 / sum(module.weight.shape)))
            assert not module.bias.any()
        elif isinstance(module, nn.Embedding):
            assert_uniform(module.weight, 0.05)
        elif isinstance(module, nn.RNNBase):
            hidden, gates = module.hidden_size, module.weight_hh_l0.size(0) // module.hidden_size
            # Keras' kernel is (inputs, gates * hidden), its recurrent kernel (hidden, gates * hidden): one matrix each.
            assert_uniform(module.weight_ih_l0, math.sqrt(6 / (module.input_size + gates * hidden)))
            recurrent = module.weight_hh_l0.detach()
            torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(hidden), rtol=0, atol=1e-5)
            bias = (module.bias_ih_l0 + module.bias_hh_l0).detach().unflatten(0, (gates, hidden))
            expected = torch.zeros(gates, hidden)
            if isinstance(module, nn.LSTM):
                expected[1] = 1  # torch's order is input, forget, cell, output
            assert torch.equal(bias, expected)


def assert_uniform(weight, limit):
    """Compare extremes and variance with those of a uniform draw; the bounds are six standard deviations wide."""
    n = weight.numel()
    assert weight.abs().max() <= limit * (1 + 1e-6)
    assert weight.abs().max() > limit * (1 - 20 / n)  # P(all of n below) = exp(-20)
    variance, spread = limit**2 / 3, limit**2 * math.sqrt(4 / 45 / n)
    assert abs(weight.pow(2).mean().item() - variance) < 6 * spread


def test_initialisation_follows_the_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(models.initialise(models.JenaConvnet()).first.weight)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_majority_class():
    for labels, positive in (([1, 1, 0], True), ([0, 0, 1], False), ([1, 1], True), ([0], False)):
        model = models.MajorityClass(torch.tensor(labels))
        logits = model(torch.zeros(5, 9, dtype=torch.int64))
        assert logits.shape == (5,)
        assert bool((logits > 0).all()) == positive
        assert torch.isfinite(logits).all()
    shares = torch.sigmoid(models.MajorityClass(torch.tensor([1, 0, 0, 0]))(torch.zeros(1, 2)))
    torch.testing.assert_close(shares, torch.tensor([0.25]))
    assert list(model.state_dict()) == ["logit"]


def test_the_temperature_now():
    windows = torch.arange(24.0).reshape(2, 4, 3)
    assert models.TemperatureNow()(windows).tolist() == [10, 22]
    assert models.TemperatureNow(column=0)(windows).tolist() == [9, 21]
    assert not list(models.TemperatureNow().parameters())
