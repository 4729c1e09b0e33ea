"""The command lines that the documents tell a reader to type, and what each of them starts."""

import os
import re
import shlex
from importlib import util
from pathlib import Path

from tests.helpers import ROOT

# Programs that documents may start beside this repository's scripts. Whatever else a line begins
# with is a mistake of the document, or of this reader.
OTHERS = ("ln", "make", "pip", "tensorboard")
PYTHONS = ("python", "python3")
LAUNCHERS = ("torch.distributed.launch", "torch.distributed.run")

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(^|\s)#.*")
SEPARATORS = "&;|"  # of the shell, between the commands of a line


def blocks(path, language):
    """Texts of the fenced blocks of a document that are marked as `language`."""
    found = FENCE.findall(Path(path).read_text())
    return [text for marked, text in found if marked == language]


def commands(path):
    """Every command of the sh blocks of a document: [(folder it is typed in, its words)].

    A block begins in the root of the repository. Line continuations, comments, `cd`, several
    commands on a line and `for NAME in VALUES; do ... done` are understood; the body of a loop is
    read once, with the first value.
    """
    found = []
    for text in blocks(path, "sh"):
        folder = ROOT
        variables = {}
        for line in text.replace("\\\n", " ").splitlines():
            for words in _simple_commands(line):
                words = [_expanded(word, variables) for word in words]
                if words[0] == "for":
                    variables[words[1]] = words[3]
                elif words[0] == "cd":
                    folder = Path(os.path.normpath(folder / words[1]))
                else:
                    found.append((folder, words))
    return found


def _simple_commands(line):
    """Yield the words of each command of a line, without the shell's own."""
    lexer = shlex.shlex(COMMENT.sub("", line), posix=True, punctuation_chars=SEPARATORS)
    lexer.whitespace_split = True
    lexer.commenters = ""  # it would end a word at a # inside
    words = []
    for token in [*lexer, ";"]:
        if token.strip(SEPARATORS):
            words.append(token)
            continue
        if words[:1] == ["do"]:
            words = words[1:]
        if words and words not in (["done"], ["wait"]):
            yield words
        words = []


def _expanded(word, variables):
    for name, value in variables.items():
        word = word.replace(f"${name}", value)
    return word


def started(folder, words):
    """(module of this repository that a command starts, its words), or None: another program.

    Raises:
        ValueError: it starts nothing that documents may start, or a script that is not there.
    """
    programs = [Path(word).name for word in words]
    places = [i for i, name in enumerate(programs) if name in (*PYTHONS, "torchrun")]
    if not places:
        if programs[0] not in OTHERS:
            raise ValueError(f"{words[0]!r} is not known: {shlex.join(words)}")
        return None

    # variables, and srun with its options, may stand before the program
    program = programs[places[0]]
    rest = words[places[0] + 1 :]
    if program == "torchrun" or (rest[0] == "-m" and rest[1] in LAUNCHERS):
        # the launcher's own options come before the script
        script = next(i for i, word in enumerate(rest) if word.endswith(".py"))
        rest = rest[script:]
    if rest[0] == "-m":
        return _module(rest[1]), rest[2:]

    path = (folder / rest[0]).resolve()
    if not path.is_file():
        raise ValueError(f"there is no script {path}: {shlex.join(words)}")
    return ".".join(path.relative_to(ROOT).with_suffix("").parts), rest[1:]


def _module(name):
    """The module that `python -m name` runs."""
    spec = util.find_spec(name) if (ROOT / name.split(".")[0]).is_dir() else None
    if spec is None:
        raise ValueError(f"python -m {name}: there is no such module in this repository")
    return f"{name}.__main__" if spec.submodule_search_locations else name
