"""Versions of what the project needs: its floors exactly, or those that are installed here.

    python .ci/versions.py floors       a line NAME==FLOOR for each requirement
    python .ci/versions.py installed    what is installed of them and of all that they need

`constraints.txt` is the output of `installed` of the environment that CI was green with.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTED = ("dev", "export")


def declared(extras: tuple[str, ...] = TESTED) -> list[str]:
    """The project's requirements, with those of some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    further = project["optional-dependencies"]
    return [*project["dependencies"], *(line for name in extras for line in further[name])]


def floors() -> Iterator[str]:
    """Each requirement at its oldest version; tools of development have no floor to be tried."""
    for line in dict.fromkeys(declared(("export",))):
        if found := re.fullmatch(r"([\w.-]+)>=([\w.]+)", line):
            yield f"{found[1]}=={found[2]}"


def installed() -> Iterator[str]:
    """What is installed of the requirements and of all that they need, by name."""
    waiting, found = [(line, frozenset[str]()) for line in declared()], dict[str, str]()
    while waiting:
        line, extras = waiting.pop()
        name = needed(line, extras)
        if name is None or name in found:
            continue
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:  # for another system
            continue
        asked = re.search(r"\[([\w, -]+)\]", line.split(";")[0])
        chosen = frozenset(asked[1].replace(" ", "").split(",")) if asked else frozenset[str]()
        waiting += [(more, chosen) for more in metadata.requires(name) or []]
    for name, version in sorted(found.items()):
        yield f"{name}=={version}"


def needed(line: str, extras: frozenset[str]) -> str | None:
    """The name of a requirement, or None where it is not needed on this system."""
    from packaging.requirements import Requirement

    wanted = Requirement(line)
    marker = wanted.marker
    if marker is not None and not any(marker.evaluate({"extra": e}) for e in ("", *extras)):
        return None
    return re.sub(r"[-_.]+", "-", wanted.name).lower()


if __name__ == "__main__":
    kind = {"floors": floors, "installed": installed}.get(sys.argv[1] if sys.argv[1:] else "")
    if kind is None:
        sys.exit(__doc__)
    print("\n".join(kind()))
