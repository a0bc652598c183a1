"""What decides a result beside its config: the code of its options, the versions of what they import, the data.

`code` is what the present process would compute with; it is kept in result.json and last.pt as `made`. A run whose own
code differs from what is here now is not skipped or continued in silence (`changed`), and a table does not average it
with runs of other code (`mixed`). The engine's own files, its commit and the packages' versions differ more often than
they matter: they are said, and keep nothing from going on (`drifted`).
"""

import ast
import copy
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.command.listing import GROUPS

PACKAGE = Path(__file__).parent.parent
AGAIN = "run it anew with --again (what is there is kept beside), or under another name="


def code(config: dict) -> dict:
    """Of the options that `config` chooses.

    sources : module -> {file, text, code} for the file of every option's class and the files of its own kind that it
        imports: of this program the options' files, else what is neither installed nor Python's. text and code are
        digests of the file and of its syntax tree without docstrings, so that a comment changes only the first.
    versions : of torch and of the installed packages that these files import.
    engine : a digest of the program's other files. runner : its version.
    """
    from runner import __version__
    from runner.command.build import locate

    targets = tuple(sorted({(target, where) for target, where in _targets(config)}))
    modules, found = _known.get(targets, ((), {}))
    if not found or any(sys.modules.get(name) is not module for name, module in modules):
        names, packages = {}, {"torch"}
        for target, where in targets:
            _walk(locate(target, where).__module__, names, packages)
        sources = {name: {"file": str(path), **digests(name, path)} for name, path in sorted(names.items())}
        versions = {name: version for name in sorted(packages) if (version := _version(name))}
        found = {"runner": __version__, "engine": _engine(), "versions": versions, "sources": sources}
        _known[targets] = tuple((name, sys.modules.get(name)) for name in names), found
    return copy.deepcopy(found)


_known: dict[tuple, tuple] = {}  # targets -> the modules that were looked at, and what `code` says of them


def _targets(node: Any, where: str = "") -> Iterable[tuple[str, str]]:
    if not isinstance(node, dict):
        return
    if isinstance(node.get("_target_"), str):
        yield node["_target_"], where
    for key, value in node.items():
        if where or key in GROUPS and key != "logger":
            yield from _targets(value, f"{where}.{key}" if where else key)


def _walk(name: str, found: dict[str, Path], packages: set[str]) -> None:
    """Put a module and the ones of its own kind that it imports into `found`, the installed ones into `packages`."""
    if name in found or name == "__main__":
        return
    path = _file(name)
    if path is None or _foreign(path):
        top = name.partition(".")[0]
        if path is not None and top not in sys.stdlib_module_names:
            packages.add(top)
        return
    if path.is_relative_to(PACKAGE):
        parts = path.relative_to(PACKAGE).parts
        if len(parts) < 2 or parts[0] not in GROUPS or path.name == "__init__.py":
            return  # the engine
    found[name] = path
    for other in _imports(name, path):
        _walk(other, found, packages)


def _file(name: str) -> Path | None:
    """The file of a module, which is not imported for this."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name) if name.partition(".")[0] == name or _parent(name) else None
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec is not None and spec.has_location else None
    return Path(file).resolve() if file and file.endswith(".py") else None


def _parent(name: str) -> bool:
    return name.rpartition(".")[0] in sys.modules


@lru_cache(maxsize=1)
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")})


def _foreign(path: Path) -> bool:
    """Whether a file is Python's or of an installed package."""
    if path.is_relative_to(PACKAGE):
        return False
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(
        path.is_relative_to(folder) for folder in _installed()
    )


def _imports(name: str, path: Path) -> list[str]:
    """The names that may be modules in the import statements of a file, wherever they stand, and its packages."""
    is_package = path.name == "__init__.py"
    return [*_parents(name), *(_absolute(name, is_package, *entry) for entry in _statements(path, *_state(path)))]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _absolute(name: str, is_package: bool, level: int, target: str) -> str:
    if not level:
        return target
    base = name.split(".")
    base = base[: len(base) - level + is_package]
    return ".".join([*base, target] if target else base)


def _state(path: Path) -> tuple[int, int]:
    at = path.stat()
    return at.st_mtime_ns, at.st_size


@lru_cache(maxsize=4096)
def _statements(path: Path, *state: int) -> tuple[tuple[int, str], ...]:
    """(level, dotted name) of every import, and of every name that a `from` takes, which may be a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found.append((node.level, base))
            found += [(node.level, f"{base}.{alias.name}" if base else alias.name) for alias in node.names]
    return tuple(dict.fromkeys(found))


_read: dict[str, tuple[Any, dict[str, str]]] = {}  # module -> what it was when it was looked at, and its digests


def digests(name: str, path: Path) -> dict[str, str]:
    """Of a module's file, as this process imported it: later edits are not what it runs."""
    module = sys.modules.get(name)
    if module is None:
        return _digests(path)
    if name not in _read or _read[name][0] is not module:
        _read[name] = module, _digests(path)
    return _read[name][1]


def _digests(path: Path) -> dict[str, str]:
    text = path.read_bytes()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {"text": _short(text), "code": _short(text)}
    for node in ast.walk(tree):  # docstrings
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            first.value.value = ""
    return {"text": _short(text), "code": _short(ast.unparse(tree).encode())}


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@lru_cache(maxsize=64)
def _version(name: str) -> str | None:
    version = getattr(sys.modules.get(name), "__version__", None)
    try:
        return str(version) if isinstance(version, str) else metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _engine() -> str:
    """Of the files that are no options and take part in a run, as they were when this was first asked."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.glob("**/*.py")):
        parts = path.relative_to(PACKAGE).parts
        option = len(parts) > 1 and parts[0] in GROUPS and path.name != "__init__.py"
        if not option and parts[0] not in ("sweep", "logger"):
            found.update("/".join(parts).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


# ---- then and now


def changed(then: dict | None, now: dict) -> list[str]:
    """What decides the result and is not as it was, one phrase each; empty where all is, or `then` does not say."""
    then = then if isinstance(then, dict) else {}
    before, after = _sources(then), _sources(now)
    differ = [name for name in sorted(before.keys() | after.keys()) if not _same(before.get(name), after.get(name))]
    found = [f"{_place(after.get(name) or before[name])} has changed since" for name in differ] if before else []
    if then.get("data") and now.get("data") and then["data"] != now["data"]:
        found.append(f"the data have changed since (fingerprint {then['data']:.10} then, {now['data']:.10} now)")
    return found


def drifted(then: dict | None, now: dict) -> list[str]:
    """What differs and need not matter: versions, and the program's own files."""
    then = then if isinstance(then, dict) else {}
    if not _sources(then):
        return ["by which code was not recorded: whether it is that of today cannot be told"]
    versions, found = then.get("versions") or {}, []
    for name, version in now["versions"].items():
        if versions.get(name) not in (None, version):
            found.append(f"{name} was {versions[name]}, and is {version} now")
    if None not in (before := then.get("threads"), after := now.get("threads")) and before != after:
        found.append(f"sums were taken by {before} thread{'s' * (before > 1)}, are by {after} now, and round otherwise")
    if then.get("engine") != now["engine"]:
        found.append(f"the program's own files differ from those of {commit(then)}")
    return found


def mixed(runs: dict[Path, dict], data: dict[Path, tuple[str, str]]) -> dict[Path, str]:
    """Which of the finished runs of a table were not computed by the code, or on the data, of the newest of them.

    runs : folder -> its result. data : folder -> (settings of its data set, seed). What a set draws from the
    seed has another fingerprint for each: then runs of one seed are compared alone. Returns folder -> why its value
    does not count.
    """
    when = {folder: str(result.get("finished") or "") for folder, result in runs.items()}
    runs = {folder: result.get("made") for folder, result in runs.items()}
    order = sorted((folder for folder, made in runs.items() if _sources(made)), key=when.get)
    newest: dict[str, dict] = {}
    seeds: dict[tuple, set] = {}
    for folder in order:
        newest |= _sources(runs[folder])
        seeds.setdefault((data[folder][0], runs[folder].get("data")), set()).add(data[folder][1])
    drawn = {key for key, _ in seeds} - {key for (key, _), of in seeds.items() if len(of) > 1}
    whose = {folder: data[folder] if data[folder][0] in drawn else data[folder][:1] for folder in order}
    prints = {whose[folder]: runs[folder].get("data") for folder in order}
    found = {}
    for folder in order:
        own = _sources(runs[folder])
        other = [_place(newest[name]) for name, file in own.items() if not _same(file, newest[name])]
        if other:
            found[folder] = f"of other code than the newest runs here: {', '.join(other)}"
        elif runs[folder].get("data") != prints[whose[folder]]:
            found[folder] = "on other data than the newest runs here"
    return found


def remarks(runs: Iterable[dict | None]) -> list[str]:
    """Of the runs that a table averages: what they do not share, or do not say, one line each."""
    runs = list(runs)
    said = [made for made in runs if _sources(made)]
    found = []
    if len({made.get("engine") for made in said}) > 1:
        found.append(f"the runs are of several states of this program: {_counts(commit(made) for made in said)}")
    torch = [str((made.get("versions") or {}).get("torch")) for made in said]
    if len(set(torch)) > 1:
        found.append(f"the runs are of several versions of torch: {_counts(torch)}")
    if said and len(said) < len(runs):
        found.append(f"by which code {len(runs) - len(said)} of the {len(runs)} runs were computed was not recorded")
    return found


def _counts(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(f"{word} ({words.count(word)})" for word in sorted(set(words)))


def commit(made: dict) -> str:
    """By which checkout, in words."""
    git = made.get("git") if isinstance(made.get("git"), dict) else None
    if not git or not isinstance(git.get("commit"), str):
        return f"version {made.get('runner', 'unknown')}"
    return f"commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}"


def _sources(made: dict | None) -> dict[str, dict]:
    found = made.get("sources") if isinstance(made, dict) else None
    return found if isinstance(found, dict) else {}


def _same(one: dict | None, other: dict | None) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    return any(one.get(key) == other.get(key) is not None for key in ("text", "code"))


def _place(file: dict) -> str:
    path = Path(str(file.get("file", "a file")))
    for base in (Path.cwd(), PACKAGE.parent):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)
