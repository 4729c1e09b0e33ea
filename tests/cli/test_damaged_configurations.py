"""Damaged configurations: each is refused in one line, or read as options."""

from spike_driven_transformer import train
from tests.helpers import ROOT
from tests.mutated import OTHER, SAME, counts, mutated, try_out

CONFIGURATIONS = sorted((ROOT / "spike_driven_transformer" / "conf").rglob("*.yml"))


@counts
def test_damaged_configurations_are_refused_or_read(count, tmp_path, capsys):
    parser, path = train.get_parser(), tmp_path / "x.yml"
    whole = {file: parser.parse(["-c", str(file)]) for file in CONFIGURATIONS}

    def attempt(rng):
        file = CONFIGURATIONS[rng.integers(len(CONFIGURATIONS))]
        path.write_bytes(mutated(rng, file.read_bytes()))
        asked = parser.parse(["-c", str(path)])
        named = asked.experiment.config
        assert named == str(path)
        return SAME if asked.network == whole[file].network else OTHER

    try_out("configurations", count, attempt, capsys)
