"""What the tests of VGGSNN's scripts share."""

import shlex

from neuromorphic_tasks import main_training_parallel as training

SMALL = "--width_mult 0.0625 --device cpu --batch_size 4 --T_prime 10 "
LANES = "--multi_channel 1 --num_channels 3 "


def train(words):
    """Train as the command does; returns the summary."""
    return training.main(shlex.split(words))


def parsed(words, script=training):
    return script.get_parser().parse(shlex.split(words))
