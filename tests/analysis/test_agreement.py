"""Two networks side by side, by hand."""

import pytest
import torch
from torch import nn

from analysis.agreement import compare


class Levels(nn.Module):
    """Two layers in the place of neurons, which let pass what is above a number."""

    def __init__(self, first, second):
        super().__init__()
        self.first = nn.Threshold(first, 0)
        self.second = nn.Threshold(second, 0)

    def sites(self):
        return [self.first, self.second]

    def forward(self, x):
        return self.second(self.first(x))


X = torch.tensor([[1.0, 2.0], [4.0, 3.0], [2.0, 0.0]])


def test_shares_by_hand():
    """Above 1 and again above 1, against above 1 and then above 2: the two 2s are lost."""
    labels = torch.tensor([1, 0, 0])
    batches = [(X[:2], X[:2], labels[:2]), (X[2:], X[2:], labels[2:])]
    found = compare(Levels(1, 1), Levels(1, 2), batches)
    # the readouts are (0, 2), (4, 3), (2, 0) and (0, 0), (4, 3), (0, 0)
    assert found.images == 3
    assert found.spikes == {"first": 1.0, "second": pytest.approx(4 / 6)}
    assert found.predictions == pytest.approx(2 / 3)
    assert (found.accuracy, found.other_accuracy) == (1.0, pytest.approx(2 / 3))
    assert found.difference == 2
    assert found.told() == (
        "accuracy 66.67% (the SNN: 100.00%), 66.67% of the predictions and, by layer, 66.67% "
        "(second) to 100.00% of the outputs are equal"
    )
    assert "second                         66.67%" in found.table()


def test_without_labels_there_is_no_accuracy():
    found = compare(Levels(1, 1), Levels(1, 1), [(X, X, None)])
    assert (found.accuracy, found.other_accuracy) == (None, None)
    assert found.told().startswith("100.00% of the predictions")


def test_of_an_ann_no_spikes_are_compared():
    labels = torch.tensor([1, 0, 0])
    found = compare(Levels(1, 1), Levels(1, 2), [(X, X, labels)], spiking=False)
    assert found.spikes == {}
    assert found.told("torch") == (
        "accuracy 66.67% (torch: 100.00%), 66.67% of the predictions are equal"
    )


def test_a_readout_that_is_no_number_is_no_small_difference():
    batches = [(X, X, None), (torch.full_like(X, torch.nan), X, None), (X, X, None)]
    difference = compare(Levels(1, 1), Levels(1, 1), batches).difference
    assert difference != difference


def test_no_hook_is_left():
    net = Levels(1, 1)
    compare(net, net, [(X, X, None)])
    assert not any(site._forward_hooks for site in net.sites())
