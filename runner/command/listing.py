"""The options and their papers, read from the first lines of the YAML files and nothing else (no torch, no Hydra)."""

from pathlib import Path

GROUPS = (
    "model", "transform", "dataset", "augment", "sampler", "loss", "risk", "groups", "optim", "schedule",
    "gradient", "balance", "sharpness", "quantization", "federated", "hook", "logger",
)  # fmt: skip
MANY = ("transform", "augment", "hook", "logger")  # groups of which any number of options may be chosen


def conf_dir() -> Path:
    """The packaged config folder: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def title(path: Path) -> str:
    """The first comment of a YAML file that is not a Hydra directive."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("#") and not line.startswith("# @"):
                return line[1:].strip()
            if line.strip() and not line.startswith("#"):
                break
    return ""


def options(group: str, folders: list[Path]) -> dict[str, Path]:
    """Option name -> file, over several config folders (an earlier folder wins), sorted; `none` first."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items(), key=lambda item: (item[0] != "none", item[0])))


def listing(folders: list[Path], group: str | None = None, pattern: str = "") -> str:
    """What `--list [group] [pattern]` prints. A lone word that is no group is a pattern over all groups."""
    if group is not None and group not in GROUPS:
        group, pattern = None, pattern or group
    lines = []
    for name in [group] if group else GROUPS:
        rows = [
            (option, title(path))
            for option, path in options(name, folders).items()
            if pattern.lower() in f"{option} {title(path)}".lower()
        ]
        if rows:
            width = max(len(option) for option, _ in rows)
            lines += [f"{name}=", *(f"  {option:<{width}}  {text}" for option, text in rows), ""]
    return "\n".join(lines).rstrip() if lines else f"nothing matches '{pattern}'"
