"""What needs a CUDA GPU: `make test-gpu`."""

import pytest
import torch

import models
from models import NeuronConfig
from models.neuron import dispatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neuron_equals_the_cpu(dtype, steps):
    config = NeuronConfig(levels=3)
    x = (torch.randn(steps, 3, 64, 8, 8, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        current = x.to(device, copy=True).requires_grad_()
        theta, leak = (torch.tensor(v, device=device, requires_grad=True) for v in (0.75, 0.5))
        o, _ = dispatch.mlif(current, theta, leak, config)
        o.float().square().sum().backward()
        results.append((o.detach().cpu(), current.grad.cpu(), theta.grad.cpu()))
    assert torch.equal(results[0][0], results[1][0])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for a, b in zip(results[0][1:], results[1][1:]):
        assert (a - b).abs().max() <= tolerance * a.abs().max()


def test_forward_does_not_wait_for_the_device():
    net = models.build("resnet20", models.Spiking(NeuronConfig.vgg(3)), bn=False, width_mult=0.25).cuda()
    x = torch.randn(8, 3, 32, 32, device="cuda")
    net(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
