"""Fused models in the hands of torch's tools: the numbers of the plain model, or the plain model itself."""

from __future__ import annotations

import copy
import datetime
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import seqconv

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 8, 5), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3), nn.ReLU(),
        nn.Conv1d(8, 6, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 8, 5), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(72, 2)
    )


def pair():
    model = net()
    return seqconv.fuse(model), model, torch.randn(12, 4, 40)


def gradients(model):
    return [one.grad for one in model.parameters()]


def test_autocast_computes_as_the_plain_model():
    fused, model, x = pair()
    outputs = []
    for one in (fused, model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = one(x)
        output.float().sum().backward()
        outputs.append(output)
    assert outputs[0].dtype is outputs[1].dtype is torch.bfloat16
    torch.testing.assert_close(*outputs)
    for ours, torchs in zip(gradients(fused), gradients(model), strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_compute_again(reentrant):
    fused, model, x = pair()
    x.requires_grad_()
    checkpoint(fused, x, use_reentrant=reentrant).sum().backward()
    model(x).sum().backward()
    for ours, torchs in zip(gradients(fused), gradients(model), strict=True):
        torch.testing.assert_close(ours, torchs, **CLOSE)


def test_a_model_cut_into_checkpoints_runs_its_layers():
    fused, model, x = pair()
    output = checkpoint_sequential(fused, 2, x, use_reentrant=False)
    torch.testing.assert_close(output, model(x), **CLOSE)


def test_functional_calls_take_other_parameters():
    fused, model, x = pair()
    others = {name: one + 0.1 for name, one in model.named_parameters()}
    expected = torch.func.functional_call(model, others, (x,))
    torch.testing.assert_close(torch.func.functional_call(fused, others, (x,)), expected, **CLOSE)


def test_transforms_of_functions():
    fused, model, x = pair()

    def losses(one):
        return lambda parameters, sample: torch.func.functional_call(one, parameters, (sample[None],)).sum()

    found = [
        torch.func.vmap(torch.func.grad(losses(one)), in_dims=(None, 0))(dict(one.named_parameters()), x)
        for one in (fused, model)
    ]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], **CLOSE)
    tangents = torch.func.jvp(fused, (x,), (torch.ones_like(x),))
    for ours, torchs in zip(tangents, torch.func.jvp(model, (x,), (torch.ones_like(x),)), strict=True):
        torch.testing.assert_close(ours, torchs, **CLOSE)


def test_traces_and_exports_are_of_the_plain_model():
    fused, model, x = pair()
    fused.eval()
    names = [str(node.target) for node in torch.export.export(fused, (x,)).graph.nodes]
    assert any("conv1d" in name for name in names)
    assert not any("seqconv" in name for name in names)
    traced = torch.jit.trace(fused, x)
    assert "seqconv" not in str(traced.graph)
    torch.testing.assert_close(traced(x), model(x), **CLOSE)
    graph = torch.fx.symbolic_trace(seqconv.unfuse(fused))
    torch.testing.assert_close(graph(x), model(x), **CLOSE)


@pytest.mark.large  # a C++ compiler takes its time
def test_a_fused_model_is_compiled_ahead_of_time_as_it_was(tmp_path):
    fused, model, x = pair()
    fused.eval()
    path = torch._inductor.aoti_compile_and_package(
        torch.export.export(fused, (x,)), package_path=str(tmp_path / "model.pt2")
    )
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), model(x), **CLOSE)


def test_fx_sees_a_fused_model_as_its_layers():
    fused, model, x = pair()
    graph = torch.fx.symbolic_trace(fused)
    assert "fused" not in graph.code
    torch.testing.assert_close(graph(x), model(x), **CLOSE)


def test_files_of_weights_alone():
    fused, model, x = pair()
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state)
    assert list(state) == list(model.state_dict())
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), model(x), **CLOSE)


class LowRank(nn.Module):
    """What LoRA adds to a weight, as a parametrization."""

    def __init__(self, weight):
        super().__init__()
        rows = weight[0].numel()
        self.down, self.up = nn.Parameter(torch.randn(2, rows) / 9), nn.Parameter(torch.randn(len(weight), 2) / 9)

    def forward(self, weight):
        return weight + (self.up @ self.down).view_as(weight)


class Adapter(nn.Module):
    """A convolution with another beside it, in its place, as tools for LoRA put it there."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.beside = nn.Conv1d(layer.in_channels, layer.out_channels, layer.kernel_size)

    def forward(self, x):
        return self.layer(x) + self.beside(x)


def test_adapters_put_in_after_fusing():
    fused, _, x = pair()
    fused[0].requires_grad_(False)
    nn.utils.parametrize.register_parametrization(fused[0], "weight", LowRank(fused[0].weight))
    fused[3] = Adapter(fused[3])
    plain = seqconv.unfuse(fused)
    for one in (fused, plain):
        one(x).sum().backward()
    torch.testing.assert_close(fused(x), plain(x), **CLOSE)
    for ours, torchs in zip(gradients(fused), gradients(plain), strict=True):
        assert (ours is None) == (torchs is None)
        if ours is not None:
            torch.testing.assert_close(ours, torchs, **CLOSE)


def test_averages_of_weights():
    fused, model, x = pair()
    found = []
    for one in (fused, model):
        average = torch.optim.swa_utils.AveragedModel(one)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.mul_(0.5)
        average.update_parameters(one)
        found.append(average(x))
    torch.testing.assert_close(*found, **CLOSE)


def test_a_profiler_shows_the_kernel():
    fused, _, x = pair()
    fused(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        fused(x)
    names = {event.key for event in profile.key_averages()}
    assert any("conv1d_relu_max_pool1d" in name for name in names), sorted(names)


def train(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, 40, generator=generator), torch.randint(0, 2, (16,), generator=generator)


def trained(rank, meeting):
    """Train on half of a batch, in a process of its own; return the parameters, of either way to share the work."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    waits = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=waits)
    x, y = (one[rank::2] for one in batch())
    told = []
    for sharded in (False, True):
        model = seqconv.fuse(net())
        if sharded:
            wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        else:
            wrapped = nn.parallel.DistributedDataParallel(model)
        train(wrapped, x, y)
        told.append([(one.full_tensor() if sharded else one).detach().tolist() for one in model.parameters()])
    distributed.barrier()
    distributed.destroy_process_group()
    return told


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    """DistributedDataParallel, then fully_shard."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model = net()
    train(model, *batch())
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(trained, rank, tmp_path / "meeting") for rank in range(2)]
        for found in [ours for one in waiting for ours in one.result(timeout=120)]:
            for ours, one in zip(found, model.parameters(), strict=True):
                torch.testing.assert_close(torch.tensor(ours), one.detach(), **CLOSE)


def test_norms_of_many_processes_stay_torchs():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(normed())
    row = seqconv.fusion_report(seqconv.fuse(model))[0]
    assert not row.fused
    assert "SyncBatchNorm" in row.reason


def test_copies_for_ensembles():
    models = [seqconv.fuse(net()) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(3, 4, 40)

    def run(one, other):
        return torch.func.functional_call(base, (one, other), (x,))

    found = torch.func.vmap(run)(parameters, buffers)
    torch.testing.assert_close(found[0], models[0](x), **CLOSE)
