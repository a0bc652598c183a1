"""The folder tree is the map: who may import whom, read from the imports, wherever in a file they stand."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "runner"
# From the ground up: a room imports from its own floor and from those below it
FLOORS = [
    ["core"],
    ["command"],
    ["record"],
    [
        "logger",
        "dataset",
        "model",
        "transform",
        "augment",
        "sampler",
        "loss",
        "risk",
        "groups",
        "gradient",
        "balance",
        "optim",
        "schedule",
        "hook",
        "sharpness",
        "quantization",
        "federated",
    ],
    ["engine"],
    ["federated.*", "quantization.onnx", "sweep"],  # .*: not the base class, which is its group's
    ["__main__", "report", "evaluate"],
]


def files() -> dict[str, Path]:
    """Module, below the package -> its file; a package goes by its own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, but for what only type checkers read."""
    tree, found = ast.parse(path.read_text()), set()
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "runner":
            base = node.module.partition(".")[2]
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if name in FILES else base for name in names}
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("runner.")}
    return found - {"", ".".join(path.relative_to(PACKAGE).with_suffix("").parts)}  # a process may import its command


ARROWS = {name: imported(path) for name, path in FILES.items() if name}


def floor(name: str) -> int:
    """The longest entry of FLOORS that the name begins with says where it is."""
    place = [
        (len(room), number)
        for number, rooms in enumerate(FLOORS)
        for room in rooms
        if name == room or name.startswith(f"{room.removesuffix('*').rstrip('.')}.")
    ]
    assert place, f"{name} is on no floor"
    return max(place)[1]


def test_nothing_imports_upward():
    wrong = [f"{name} -> {other}" for name, others in ARROWS.items() for other in others if floor(other) > floor(name)]
    assert not wrong


def test_no_circle():
    done, path = set(), []

    def visit(name: str) -> None:
        if name in path:
            raise AssertionError(" -> ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        path.append(name)
        for other in sorted(ARROWS.get(name, ())):
            visit(other)
        done.add(path.pop())

    for name in ARROWS:
        visit(name)


def test_tests_are_where_what_they_test_is():
    """A folder of tests is named as a room; what spans rooms stands beside this file."""
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert folders <= rooms and {room for floor in FLOORS for room in floor} & rooms <= folders
