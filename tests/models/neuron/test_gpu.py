"""What needs a CUDA GPU: `make test-gpu`."""

import pytest
import torch

import absorb_bn
import ann_ddp
import models
import snn_ddp
from engine import loop
from models import NeuronConfig
from models.neuron.backends import dispatch
from models.neuron.reference import mlif_reference
from tests.models.neuron.test_backends import GRID, SAMPLE, backend, both, gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
NAMES = ["torch", "cupy", "triton", "compiled"]


def needs(name):
    reason = dispatch.why_not(name, "cuda")
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("name", ["torch", "cupy", "triton"])
def test_backend_equals_definition_on_the_gpu(name):
    """float32: spikes to the last one, gradients to rounding; sizes that do not fill a tile, and that do."""
    needs(name)
    both(backend(name), GRID[::3] + GRID[-6:], torch.float32, tolerance=2e-5, device="cuda")
    both(backend(name), SAMPLE, torch.float32, size=(64, 512), tolerance=2e-4, device="cuda")
    both(backend(name), SAMPLE, torch.float32, cases=((40, True),), tolerance=2e-4, device="cuda")


def test_compiled_equals_definition_on_the_gpu():
    """Its compiler may fuse a product and a sum, so that after the first step a spike on an edge may fall otherwise."""
    both(
        backend("compiled"),
        SAMPLE,
        torch.float32,
        cases=((1, False),),
        tolerance=2e-5,
        device="cuda",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_neuron_equals_the_cpu(name, dtype):
    needs(name)
    config = NeuronConfig(levels=3)
    x = (torch.randn(1, 3, 64, 8, 8, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    grad, last = torch.ones_like(x, dtype=torch.float32), torch.zeros(x.shape[1:])
    want = gradients(backend("reference"), x, grad, last, True, config)
    got = gradients(backend(name), x.cuda(), grad.cuda(), last.cuda(), True, config)
    assert torch.equal(got[0].cpu(), want[0])
    for a, b in zip(got[1:], want[1:]):
        assert (a.cpu().float() - b.float()).abs().max() <= {4: 1e-4, 2: 2e-2}[dtype.itemsize] * (
            1 + b.abs().max()
        )


@pytest.mark.parametrize("name", ["torch", "cupy", "triton"])
def test_channels_last_and_another_stream(name):
    """The kernel runs where torch's current stream is, keeps the layout, and leaves the current device alone."""
    needs(name)
    x = (
        torch.randn(2 * 8, 64, 16, 16, device="cuda")
        .to(memory_format=torch.channels_last)
        .unflatten(0, (2, 8))
    )
    theta, leak = torch.tensor(0.8, device="cuda"), torch.tensor(0.9, device="cuda")
    device, stream = torch.cuda.current_device(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        y = x * 1.5
        o, _ = dispatch.mlif(y, theta, leak, NeuronConfig(levels=3), backend=name)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(o, mlif_reference(x * 1.5, theta, leak, NeuronConfig(levels=3))[0])
    assert o.stride() == x.stride() and torch.cuda.current_device() == device


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < 2**35,
    reason="needs 32 GiB of GPU memory",
)
@pytest.mark.parametrize("name", NAMES)
def test_more_elements_than_32_bits_count(name):
    """Fewer neurons than 2^31, but not their steps: an offset t * n must be 64 bits wide."""
    needs(name)
    x = torch.zeros(5, 2**29, dtype=torch.bfloat16, device="cuda")
    x[4, -3:] = torch.tensor([1.5, 3.0, 9.0])
    x.requires_grad_()
    one = torch.tensor(1.0, device="cuda")
    o, _ = dispatch.mlif(x, one, one, NeuronConfig.vgg(3), backend=name)
    o.backward(torch.ones_like(o))
    assert o[4, -3:].tolist() == [1, 2, 4] and not o[:4].any() and not o[4, :-3].any()
    assert x.grad[4, -2] > 0 and x.grad[4, -1] == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("name", ["cupy", "triton"])
def test_second_gpu(name):
    needs(name)
    x = torch.randn(2, 1000, device="cuda:1")
    theta, leak = torch.tensor(0.8, device="cuda:1"), torch.tensor(0.9, device="cuda:1")
    o, _ = dispatch.mlif(x, theta, leak, NeuronConfig(levels=3), backend=name)
    assert torch.cuda.current_device() == 0
    assert torch.equal(o, mlif_reference(x, theta, leak, NeuronConfig(levels=3))[0])


@pytest.mark.parametrize("name", ["torch", "cupy", "triton"])
def test_forward_does_not_wait_for_the_device(name):
    needs(name)
    act = models.Spiking(NeuronConfig.vgg(3), backend=name)
    net = models.build("resnet20", act, bn=False, width_mult=0.25).cuda()
    x = torch.randn(8, 3, 32, 32, device="cuda")
    net(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_steps_do_not_wait_for_the_device(monkeypatch, tmp_path):
    """Batches, step, clamps and metrics of a script's epoch, up to the first reading of the metrics."""
    epoch = loop.Trainer._train_epoch

    def strict(trainer):
        trainer.args.print_freq = 1000
        if trainer.epoch == 2:  # by then every kernel is compiled and tuned
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            epoch(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.Trainer, "_train_epoch", strict)
    network = "--dataset DIGITS -a RESNET20 --bias --width_mult 0.25"
    training = f"{network} --batch_size 256 --dropout 0 --epochs 2 --amp bf16 --device cuda --output_dir {tmp_path}"
    ann_ddp.main(f"{training} --bn".split())
    name = tmp_path / "ann/ann_resnet20_digits_w0.25"
    absorb_bn.main(f"{network} --bn --pretrained_ann {name}.pth".split())
    snn_ddp.main(
        f"{training} -multi_channel 1 -num_channels 3 --timesteps 2 --conversion matched "
        f"--pretrained_ann {name}_bn_fused.pth".split()
    )


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_network_trains(mode):
    torch._dynamo.reset()
    net = models.build(
        "resnet20", models.Spiking(NeuronConfig.vgg(3), theta=0.3), bn=False, width_mult=0.25
    ).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
    fast = torch.compile(net, mode=mode, fullgraph=True)
    x, y = torch.randn(32, 3, 32, 32, device="cuda"), torch.randint(0, 10, (32,), device="cuda")
    losses = []
    for _ in range(12):
        with torch.autocast("cuda", torch.bfloat16):
            out = fast(x)
        loss = torch.nn.functional.cross_entropy(out.float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
