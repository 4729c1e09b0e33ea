"""What needs a CUDA GPU: `make test-gpu`."""

from dataclasses import replace

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
from tests.models.neuron.parity import (
    GRID,
    ONE_STEP,
    SAMPLE,
    SPECIAL,
    backend,
    both,
    gradients,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
KERNELS = ["torch", "cupy", "triton"]
NAMES = [*KERNELS, "compiled"]


@pytest.fixture(autouse=True)
def needed(request):
    """Skip a test whose backend cannot run here, and say why."""
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    reason = dispatch.why_not(name, "cuda") if name else None
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("name", KERNELS)
def test_backend_equals_definition_on_the_gpu(name):
    """float32: spikes to the last one, gradients to rounding.

    For sizes that do not fill a tile, for sizes that do, and for more steps than are unrolled.
    """
    run = backend(name)
    both(run, GRID[::3] + SPECIAL, torch.float32, tolerance=2e-5, device="cuda")
    both(run, SAMPLE, torch.float32, size=(64, 512), tolerance=2e-4, device="cuda")
    both(run, SAMPLE, torch.float32, cases=[(40, True)], tolerance=2e-4, device="cuda")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)],
)
@pytest.mark.parametrize("name", NAMES)
def test_neuron_equals_the_cpu(name, dtype, tolerance):
    config = NeuronConfig(levels=3)
    x = torch.randn(1, 3, 64, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    x = x.to(dtype)
    grad = torch.ones_like(x, dtype=torch.float32)
    last = torch.zeros(x.shape[1:])
    want_o, *want = gradients(backend("reference"), x, grad, last, True, config)
    o, *got = gradients(backend(name), x.cuda(), grad.cuda(), last.cuda(), True, config)
    assert torch.equal(o.cpu(), want_o)
    for a, b in zip(got, want, strict=True):
        error = (a.cpu().float() - b.float()).abs().max()
        assert error <= tolerance * (1 + b.abs().max())


@pytest.mark.parametrize("name", KERNELS)
def test_channels_last_and_another_stream(name):
    """The kernel runs where torch's current stream is and keeps the layout.

    The current device is left alone.
    """
    x = torch.randn(2 * 8, 64, 16, 16, device="cuda")
    x = x.to(memory_format=torch.channels_last).unflatten(0, (2, 8))
    theta = torch.tensor(0.8, device="cuda")
    leak = torch.tensor(0.9, device="cuda")
    config = NeuronConfig(levels=3)
    device = torch.cuda.current_device()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # whoever does not wait reads what is not written yet
        y = x * 1.5
        o, _ = dispatch.mlif(y, theta, leak, config, backend=name)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(o, mlif_reference(x * 1.5, theta, leak, config)[0])
    assert o.stride() == x.stride()
    assert torch.cuda.current_device() == device


@pytest.mark.parametrize("name", NAMES)
def test_more_elements_than_32_bits_count(name):
    """Fewer neurons than 2^31, but not their steps: an offset t * n must be 64 bits wide."""
    if torch.cuda.mem_get_info()[0] < 2**35:
        pytest.skip("needs 32 GiB of GPU memory")
    x = torch.zeros(5, 2**29, dtype=torch.bfloat16, device="cuda")
    x[4, -3:] = torch.tensor([1.5, 3.0, 9.0])
    x.requires_grad_()
    one = torch.tensor(1.0, device="cuda")
    o, _ = dispatch.mlif(x, one, one, NeuronConfig.vgg(3), backend=name)
    o.backward(torch.ones_like(o))
    assert o[4, -3:].tolist() == [1, 2, 4]
    assert not o[:4].any() and not o[4, :-3].any()
    assert x.grad[4, -2] > 0 and x.grad[4, -1] == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("name", ["cupy", "triton"])
def test_second_gpu(name):
    config = NeuronConfig(levels=3)
    x = torch.randn(2, 1000, device="cuda:1")
    theta = torch.tensor(0.8, device="cuda:1")
    leak = torch.tensor(0.9, device="cuda:1")
    o, _ = dispatch.mlif(x, theta, leak, config, backend=name)
    assert torch.cuda.current_device() == 0
    assert torch.equal(o, mlif_reference(x, theta, leak, config)[0])


@pytest.mark.parametrize("name", KERNELS)
def test_forward_does_not_wait_for_the_device(name):
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
    """Batches, step, clamps and metrics of a script's epoch, until the metrics are read."""
    epoch = loop.Trainer._train_epoch

    def strict(trainer):
        trainer.run = replace(trainer.run, print_freq=1000)  # reading them waits
        if trainer.epoch == 2:  # by then every kernel is compiled and tuned
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            epoch(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.Trainer, "_train_epoch", strict)
    network = "--dataset DIGITS -a RESNET20 --bias --width_mult 0.25"
    training = (
        f"{network} --batch_size 256 --dropout 0 --epochs 2 --amp bf16 --device cuda "
        f"--output_dir {tmp_path}"
    )
    ann_ddp.main(f"{training} --bn".split())
    name = tmp_path / "ann/ann_resnet20_digits_w0.25"
    absorb_bn.main(f"{network} --bn --pretrained_ann {name}.pth".split())
    snn_ddp.main(
        f"{training} -multi_channel 1 -num_channels 3 --timesteps 2 --conversion matched "
        f"--pretrained_ann {name}_bn_fused.pth".split()
    )
    # batch norm is trained on, and fused on the device where the network is stored
    snn_ddp.main(
        f"{training} --bn -multi_channel 1 -num_channels 3 --conversion matched "
        f"--pretrained_ann {name}.pth".split()
    )


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_network_trains(mode):
    torch._dynamo.reset()
    act = models.Spiking(NeuronConfig.vgg(3), theta=0.3)
    net = models.build("resnet20", act, bn=False, width_mult=0.25).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
    fast = torch.compile(net, mode=mode, fullgraph=True)
    x = torch.randn(32, 3, 32, 32, device="cuda")
    y = torch.randint(0, 10, (32,), device="cuda")
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


def test_compiled_equals_definition_on_the_gpu():
    """In the first step; last in this file, since every variant is compiled for itself.

    Its compiler may fuse a product and a sum, so that later a spike on a boundary may fall
    otherwise.
    """
    run = backend("compiled")
    both(run, SAMPLE, torch.float32, [ONE_STEP], tolerance=2e-5, device="cuda")
