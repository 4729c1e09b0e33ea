"""The interface of a training recipe: what a training step is beside forward and backward."""


class Recipe:
    """A recipe: optimizer, schedule, targets, loss, and what happens around a step.

    The trainer calls the methods in the order in which they stand here. A recipe overrides what it
    does otherwise; `optimizer`, `set_rate` and `loss` have no default. State that a resumed run
    needs, beside the optimizer's, goes through `state_dict` and `load_state_dict`.

    Args:
        epochs: how many to train.
    """

    def __init__(self, epochs):
        self.epochs = epochs

    def optimizer(self, net):
        """The `torch.optim.Optimizer` of the network's parameters."""
        raise NotImplementedError

    def before_epoch(self, net, epoch):
        """Before the first step of an epoch, counted from 1."""

    def set_rate(self, optimizer, epoch):
        """Apply the schedule before a step; returns the learning rate.

        epoch: counted from 1, with the fraction of it that is done: 2.5 is the middle of the
        second.
        """
        raise NotImplementedError

    def targets(self, images, labels, epoch):
        """(the images [B, ...], which may be mixed; what the loss compares with).

        Runs inside the step's autocast.
        """
        return images, labels

    def loss(self, out, targets):
        """0-dim loss, summed over the B images; out: readout [B, classes] or [T, B, classes]."""
        raise NotImplementedError

    def before_step(self, net, optimizer, scaler):
        """Between the backward and the optimizer's step."""

    def after_step(self, net):
        """After the optimizer's step."""

    def after_epoch(self, net, optimizer):
        """After the last step of an epoch, before the evaluation."""

    def trained(self, net):
        """The network that is evaluated after an epoch, such as an average of the weights."""
        return net

    def export(self, net):
        """The network that is stored as the result, equal to `trained(net)` in what it computes.

        Raises:
            RunError: it cannot be made.
        """
        return net

    def state_dict(self):
        """Plain values and tensors for `last.pth`."""
        return {}

    def load_state_dict(self, state):
        """The inverse of `state_dict`."""


def mean_readout(out):
    """[B, classes] of a readout, averaged if there is one for every timestep, [T, B, classes]."""
    return out.mean(0) if out.dim() == 3 else out
