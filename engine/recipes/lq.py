"""The recipe of an LQ-ANN: the CNNs' recipe, and the quantisers' ranges measured anew before every
epoch.
"""

import models

from .cnn import CNNRecipe, TrainingOptions

CALIBRATION = 10**6  # epochs of a loader from here on are those of the calibration


class LQRecipe(CNNRecipe):
    """Calibrates every `QuantReLU` on training images before each epoch (docs/method.md, section
    2).

    Args:
        batches: function of an epoch that yields whole batches of training images [B, 3, H, W].
        world: rank 0 measures the ranges, all processes use them.
    """

    def __init__(self, options: TrainingOptions, batches, world, teacher=None):
        super().__init__(options, teacher)
        self.batches, self.world = batches, world

    def before_epoch(self, net, epoch):
        if self.world.main:
            models.calibrate(net, self.batches(CALIBRATION + epoch))
        quantisers = [m for m in net.modules() if isinstance(m, models.QuantReLU)]
        self.world.share([bound for q in quantisers for bound in (q.lo, q.hi)])
        for quantiser in quantisers:
            quantiser.stop()
