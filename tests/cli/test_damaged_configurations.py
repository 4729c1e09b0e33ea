"""Damaged configurations and command lines: each is refused in one line, or read as options."""

import os

import pytest

import ann_ddp
import energy
import snn_ddp
from cli.parser import refuse_idle
from engine import settings
from engine.errors import UseError
from neuromorphic_tasks import main_training_parallel
from spike_driven_transformer import train
from tests.helpers import ROOT
from tests.mutated import OTHER, SAME, counts, mutated, try_out

CONFIGURATIONS = sorted((ROOT / "spike_driven_transformer" / "conf").rglob("*.yml"))
COMMANDS = {
    ann_ddp: "--dataset CIFAR10 --architecture VGG16 -lr 0.1 --batch_size 64 --lr_interval 0.6 0.8",
    snn_ddp: "--bias -num_channels 3 -multi_channel 1 --timesteps 1 --default_threshold 0.5",
    energy: "x.pth --energy_model paper --batch_size 8 --amp bf16",
    train: "--model sdt --layer 2 --opt_betas 0.9 0.99 --mean 0.5 0.5 0.5 --cutmix_minmax 0.1 0.2",
    main_training_parallel: "--T_prime 8 --num_channels 3 --multi_channel 1 -j 4 --resize plain",
}
VALUES = ("", "-1", "0", "1", "1e400", "nan", "9" * 5000, "0x10", "\udcff", "\0", "1_0", "٣")


def configurations(folder, monkeypatch):
    """Configurations of the transformer."""
    parser, path = train.get_parser(), folder / "x.yml"
    whole = {file: parser.parse(["-c", str(file)]) for file in CONFIGURATIONS}

    def attempt(rng):
        file = CONFIGURATIONS[rng.integers(len(CONFIGURATIONS))]
        path.write_bytes(mutated(rng, file.read_bytes()))
        asked = parser.parse(["-c", str(path)])
        named = asked.experiment.config
        assert named == str(path)
        return SAME if asked.network == whole[file].network else OTHER

    return attempt


def options(folder, monkeypatch):
    """Command lines: words that are damaged, changed, repeated, or gone."""
    parsers = {command: command.get_parser() for command in COMMANDS}

    def attempt(rng):
        command = list(COMMANDS)[rng.integers(len(COMMANDS))]
        parser, words = parsers[command], COMMANDS[command].split()
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(words)))
            how = rng.integers(4)
            if how == 0:
                words[at] = os.fsdecode(mutated(rng, os.fsencode(words[at])))
            elif how == 1:
                words[at] = VALUES[rng.integers(len(VALUES))]
            elif how == 2:
                words.insert(at, words[rng.integers(len(words))])
            elif len(words) > 1:
                del words[at]
        try:
            asked = parser.parse(words)
            if hasattr(command, "rules"):
                refuse_idle(parser.named(words), command.rules(asked))
        except SystemExit as end:
            assert end.code == 0
            return "shows its help"
        except UseError as error:
            # as it is printed
            raise UseError(" ".join(str(error).split())) from None
        # what was understood is a setting that can be stored and read again
        again = settings.make(parser.kind, settings.flat(asked), asked.given)
        assert again == asked
        return SAME if words == COMMANDS[command].split() else OTHER

    return attempt


READERS = (configurations, options)


@counts
@pytest.mark.parametrize("reader", READERS, ids=[reader.__name__ for reader in READERS])
def test_damaged_words_are_refused_or_read(reader, count, tmp_path, monkeypatch, capsys):
    try_out(reader.__name__, count, reader(tmp_path, monkeypatch), capsys)
