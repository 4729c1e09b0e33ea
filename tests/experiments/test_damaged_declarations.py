"""Damaged declarations: each is refused in one line, or read as chains, questions or records."""

import yaml

from experiments import chains, declared, questions
from tests.mutated import OTHER, SAME, counts, damaged, mutated, try_out

FILES = {chains.FILE: chains.read, questions.FILE: questions.read}


def declarations(folder, monkeypatch):
    """Bytes of the YAML files, and what they hold."""
    path = folder / "x.yml"
    whole = {file: read(file) for file, read in FILES.items()}
    asked = chains.get_parser().parse([])
    of_questions = questions.get_parser().parse([])
    contents = {file: declared.read(file) for file in FILES}

    def attempt(rng):
        file = list(FILES)[rng.integers(len(FILES))]
        if rng.random() < 0.5:
            path.write_bytes(mutated(rng, file.read_bytes()))
        else:
            path.write_text(yaml.dump(plain(damaged(rng, contents[file]))))
        found = FILES[file](path)
        for name, one in found.items():
            if file == chains.FILE:
                chains.make(asked, name, one)
            else:
                questions.make_chain(of_questions, one, 0)
        return SAME if found == whole[file] else OTHER

    return attempt


def plain(content):
    """Without what YAML does not write, such as tensors."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [plain(value) for value in content]
    known = isinstance(content, (str, int, float, bytes, type(None)))
    return content if known and content != "\ud800" else 0


@counts
def test_damaged_declarations_are_refused_or_read(count, tmp_path, monkeypatch, capsys):
    try_out("declarations", count, declarations(tmp_path, monkeypatch), capsys)
