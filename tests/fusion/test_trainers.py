"""Fused models in other people's trainers and tools, where these are installed: scripts stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import seqconv

# Warnings of the trainers' own (about workers, loggers, devices) are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 8, 5, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 4, 40, generator=generator), torch.randint(0, 2, (24,), generator=generator)


def same(fused, plain):
    for ours, torchs in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-3, atol=1e-4)


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Classifier(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trained = []
    for model in (seqconv.fuse(net()), net()):
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Classifier(model), DataLoader(TensorDataset(*data()), batch_size=8))
        trained.append(model)
    same(*trained)


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which its trainer needs, is not installed")

    class Classifier(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, labels):
            logits = self.model(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Rows(Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, number):
            x, labels = data()
            return {"x": x[number], "labels": labels[number]}

    trained = []
    for model in (seqconv.fuse(Classifier(net())), Classifier(net())):
        given = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, use_cpu=True, report_to="none",
            save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
        )  # fmt: skip
        transformers.Trainer(model=model, args=given, train_dataset=Rows()).train()
        trained.append(model)
    same(*trained)


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx(tmp_path, dynamo):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    fused, x = seqconv.fuse(net()).eval(), data()[0]
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(fused, (x,), path, dynamo=dynamo)
    session = runtime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net().eval()(x), rtol=1e-4, atol=1e-5)


def test_peft():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    outputs = []
    for model in (seqconv.fuse(net()), net()):
        torch.manual_seed(2)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "4", "8"], init_lora_weights=False))
        output = adapted(data()[0])
        output.sum().backward()
        gradients = [one.grad for one in adapted.parameters() if one.grad is not None]
        outputs.append([output.detach(), *gradients])
    for ours, torchs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-3, atol=1e-4)
