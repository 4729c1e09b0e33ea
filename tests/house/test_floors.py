"""The rooms of the house: nobody imports from a floor above, and no two files import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

# from the ground up; the scripts stand on top of all
FLOORS = ("models", "engine", "inputs", "analysis", "cli", "experiments")
SCRIPTS = ("benchmarks", "neuromorphic_tasks", "spike_driven_transformer")
TOP = len(FLOORS)


def modules(root):
    """{dotted name: path} of the product's modules."""
    paths = [*root.glob("*.py")]
    for room in (*FLOORS, *SCRIPTS):
        paths += (root / room).rglob("*.py")
    found = {}
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(name, path, known):
    """Names of the known modules that the module `name` imports, inside functions, too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in known else source)
    return {module for module in found if module in known and module != name}


def floor(name):
    """Number of the floor that a module stands on."""
    room = name.split(".")[0]
    return FLOORS.index(room) if room in FLOORS else TOP


def plan(root):
    """{module: modules that it imports} of the whole product."""
    known = modules(root)
    return {name: imported(name, path, known) for name, path in known.items()}


def upwards(imports):
    """The imports from a floor above, as text."""
    return [
        f"{name} imports {other}, which stands above it"
        for name, others in imports.items()
        for other in others
        if floor(other) > floor(name)
    ]


def test_no_import_runs_upwards():
    assert not upwards(plan(ROOT))


def test_no_circle():
    imports = plan(ROOT)
    # a package's face hands on the names of its modules, which import one another, not the face
    faces = {name for name in imports if any(other.startswith(f"{name}.") for other in imports)}
    rooms = {name: others - faces for name, others in imports.items() if name not in faces}
    try:
        tuple(TopologicalSorter(rooms).static_order())
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' -> '.join(error.args[1])}")


def test_a_wrong_import_is_seen(tmp_path):
    for room in FLOORS:
        (tmp_path / room).mkdir()
    (tmp_path / "engine" / "loop.py").write_text("def fit():\n    from analysis import energy\n")
    (tmp_path / "analysis" / "energy.py").write_text("from engine.loop import fit\n")
    imports = plan(tmp_path)
    assert upwards(imports) == ["engine.loop imports analysis.energy, which stands above it"]
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(imports).static_order())


def test_the_rooms_are_those_on_disk():
    # spike-driven-transformer is a link: the README's spelling of the folder
    folders = [path for path in Path(ROOT).iterdir() if not path.is_symlink()]
    packages = {path.name for path in folders if (path / "__init__.py").is_file()}
    assert packages == {*FLOORS, *SCRIPTS}
