"""MLIF: its state, its settings, and its place in a SpikingJelly network."""

import copy
import math

import pytest
import torch

from models import MLIF, NeuronConfig, Spiking


def test_carries_its_state_like_a_spikingjelly_neuron():
    neuron = MLIF(NeuronConfig(levels=3), leak=0.9)
    x = torch.randn(6, 2, 5)
    whole = neuron(x)
    neuron.reset()
    assert torch.equal(torch.cat([neuron(x[:2]), neuron(x[2:])]), whole)
    neuron.reset()
    neuron.step_mode = "s"
    assert torch.equal(torch.stack([neuron(step) for step in x]), whole)
    assert set(neuron.state_dict()) == {"theta", "leak"}
    neuron.reset()
    assert neuron.v is None


def test_refuses_another_shape_until_it_is_reset():
    neuron = MLIF(NeuronConfig(levels=3), step_mode="s")
    x = torch.randn(2, 5)
    neuron(x)
    with pytest.raises(ValueError, match="shape of one step"):
        neuron(x[:1])
    neuron.reset()
    assert neuron(x[:1]).shape == (1, 5)


def test_gradient_flows_through_the_carried_potential():
    x = torch.randn(4, 3, dtype=torch.float64)
    found = []
    for cut in (4, 2):
        neuron = MLIF(NeuronConfig(levels=2), theta=0.5, leak=0.9).double()
        outputs = [neuron(part) for part in x.split(cut)]
        torch.cat(outputs).square().sum().backward()
        found.append((neuron.theta.grad, neuron.leak.grad))
    (theta, leak), (cut_theta, cut_leak) = found
    assert torch.allclose(cut_theta, theta)
    assert torch.allclose(cut_leak, leak)


def test_detach_cuts_the_gradient_of_the_steps_before():
    neuron = MLIF(NeuronConfig(levels=2), theta=0.5, leak=0.9)
    x = torch.full((2, 3), 0.4, requires_grad=True)
    neuron(x[:1])
    neuron.detach()
    neuron(x[1:]).sum().backward()
    assert not x.grad[0].any() and x.grad[1].all()


@pytest.mark.parametrize("backend", ["auto", "cpp", "reference"])
def test_shapes_are_known_without_memory(backend):
    with torch.device("meta"):
        neuron = MLIF(NeuronConfig(levels=3), backend=backend)
        o = neuron(torch.empty(2, 3, 5, dtype=torch.bfloat16))
    assert (o.device.type, o.shape, o.dtype) == ("meta", (2, 3, 5), torch.bfloat16)
    assert (neuron.v.shape, neuron.v.dtype) == ((3, 5), torch.float32)
    # whose potential is none when it comes to have some
    assert neuron.to_empty(device="cpu").v is None


@pytest.mark.parametrize("learn", [True, False])
def test_theta_and_leak_are_parameters_or_buffers(learn):
    neuron = MLIF(theta=0.7, leak=0.6, learn_theta=learn, learn_leak=learn)
    values = {name: value.item() for name, value in neuron.state_dict().items()}
    assert values == pytest.approx({"theta": 0.7, "leak": 0.6})
    assert len(list(neuron.parameters())) == (2 if learn else 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"theta": 0.0}, "theta must be positive and finite, got 0.0"),
        ({"theta": math.inf}, "theta must be positive and finite, got inf"),
        ({"leak": math.nan}, "leak must be finite, got nan"),
        ({"step_mode": "t"}, "step_mode must be 's' or 'm', got 't'"),
        ({"backend": "inductor"}, "neuron backend must be one of .*got 'inductor'"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        MLIF(**arguments)


def test_drops_into_a_spikingjelly_network():
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), MLIF(NeuronConfig(levels=1), leak=0.5))
    x = torch.randn(3, 2, 4)
    first = net(x)
    functional.reset_net(net)
    assert torch.equal(net(x), first)
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    assert torch.equal(torch.stack([net(step) for step in x]), first)
    assert "torch" in net[1].supported_backends


def test_one_lane_agrees_with_spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    x = torch.rand(5, 4, 33) * 2
    config = NeuronConfig(levels=1, inclusive=True, reset="hard", input_gain=0.5)
    ours = MLIF(config, leak=0.5)
    theirs = neuron.LIFNode(tau=2.0, decay_input=True, v_threshold=1.0, v_reset=0.0, step_mode="m")
    assert torch.equal(ours(x), theirs(x))


def test_a_neuron_is_copied_with_its_potential_in_the_middle_of_training():
    neuron = MLIF(NeuronConfig(levels=2), theta=0.5)
    x = torch.rand(2, 3, requires_grad=True)
    neuron(x).sum()
    copied = copy.deepcopy(neuron)
    assert torch.equal(copied.v, neuron.v) and not copied.v.requires_grad
    assert torch.equal(copied(x), neuron(x))


@pytest.mark.parametrize("backend", ["reference", "torch", "cpp"])
def test_an_output_may_be_changed_in_place(backend):
    """As networks do that add a shortcut to spikes."""
    neuron = MLIF(NeuronConfig.vgg(3), backend=backend, stateless=True)
    x = torch.rand(2, 5, requires_grad=True)
    o = neuron(x)
    o += 1
    o.sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_potential_moves_with_the_neuron():
    neuron = MLIF(NeuronConfig.vgg(3), step_mode="s")
    neuron(torch.full((4,), 0.7))
    assert neuron.double().v.dtype == torch.float64
    neuron(torch.full((4,), 0.7, dtype=torch.float64))


def test_lanes_of_a_scaled_output():
    layer = Spiking(NeuronConfig.vgg(3), 1, scale=True).layer(first=False)
    layer.scale.data.fill_(0.3)
    out = layer(torch.tensor([[0.5, 1.5, 2.5, 9.0]]))
    assert layer.lanes(out)[0].argmax(0).tolist() == [0, 0, 1, 2]
    assert layer.lanes(out).sum().item() == 3
