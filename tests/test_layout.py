"""The shape of the house: floors, sizes, and what may stand where.

Imports are read with ``ast``, nothing is run.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fourm_lite"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Ground first. A file imports from a lower floor or from its own part only.
FLOORS = (
    ("errors", "former_paths", "progress"),
    ("names", "unit", "cluster"),
    ("reading",),
    ("nn",),
    ("io",),
    ("modalities",),
    ("families",),
    ("batch", "tokenization", "photos"),
    ("model", "data"),
    ("sampling", "backbone", "embedders"),
    ("training", "pipeline", "metrics"),
    ("finetune", "search"),
    ("show",),
    ("evaluate",),
    ("add_embedding", "demo", "serve", "client"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
LIGHT = {"torch", "numpy", "einops", "safetensors", "fourm_lite"}
MAX_FUNCTION, MAX_FILE = 60, 400
LARGE = 500_000
# Names that several rooms may use for a file, because they mean the same in each.
SHARED_NAMES = {
    "__init__": "a package",
    "config": "the frozen settings of a network",
    "layers": "torch modules of one kind of network",
    "load": "a folder or file as a network",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def part_of(module: str) -> str:
    """'fourm_lite.model.fourm' -> 'model'; the face itself -> '__init__'."""
    return module.split(".")[1] if "." in module else "__init__"


def targets(path: Path, node: ast.AST) -> Iterator[str]:
    """The modules that an import statement names, `from package import module` resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            here = [*path.relative_to(ROOT).parent.parts]
            base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [base])])
        inner = [f"{base}.{alias.name}" for alias in node.names]
        yield from {name if name in MODULES else base for name in inner}


def imports(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever the statement stands."""
    return {name for node in ast.walk(tree(path)) for name in targets(path, node)}


def imports_when_loaded(path: Path) -> set[str]:
    """What loading the file imports: not inside functions, not under TYPE_CHECKING."""
    found: set[str] = set()
    todo: list[ast.AST] = [tree(path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        found.update(targets(path, node))
        todo.extend(ast.iter_child_nodes(node))
    return found


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "fourm_lite"}


def by_module(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_source = pytest.mark.parametrize("path", SOURCES, ids=by_module)


def test_every_part_of_the_package_has_a_floor():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}

    assert parts <= FLOOR_OF.keys(), "give the new part a floor in FLOORS"


@every_source
def test_a_file_imports_only_from_below_or_from_its_own_part(path):
    part = "__main__" if path.stem == "__main__" else part_of(module_name(path))
    allowed = {p for p, floor in FLOOR_OF.items() if floor < FLOOR_OF[part]} | {part}

    upward = {name for name in own(imports(path)) if part_of(name) not in allowed}

    assert not upward, f"{module_name(path)} (part '{part}') reaches up or sideways: {upward}"


@every_source
def test_loading_a_file_imports_only_light_packages(path):
    tops = {name.split(".")[0] for name in imports_when_loaded(path)} - sys.stdlib_module_names
    light = LIGHT | {"typer"} if part_of(module_name(path)) == "cli" else LIGHT

    assert tops <= light, f"import {tops - light} inside the functions that need them"


def test_there_is_no_import_circle():
    graph = {
        name: own(imports_when_loaded(path)) & MODULES.keys() for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, "circle: " + " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


DOORS = {
    # `FMViT.from_pretrained`, as every class of weights has it; the loader makes the class
    ("fourm_lite.backbone.vit", "fourm_lite.backbone.load"),
    # `FourM.score`; what it does reads the model and stands in a file of its own
    ("fourm_lite.model.fourm", "fourm_lite.model.likelihood"),
}
"""Imports inside a method of a class that make a circle, on purpose: the only ones."""


def test_the_only_circles_are_the_doors_of_two_classes():
    graph = {name: own(imports(path)) & MODULES.keys() - {name} for name, path in MODULES.items()}

    def reachable(name: str) -> set[str]:
        found: set[str] = set()
        todo = [name]
        while todo:
            fresh = graph[todo.pop()] - found
            found |= fresh
            todo += fresh
        return found

    for name, other in DOORS:
        assert other in graph[name], f"{name} has no door to {other} any more: take it out of DOORS"
        graph[name] = graph[name] - {other}
    assert not [name for name in graph if name in reachable(name)]


def lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, less the docstring and the options of a verb.

    The options are a table of names, help and limits that typer reads.
    """
    first = node.body[0]
    text = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if text else 0
    options = sum(
        (a.annotation.end_lineno or 0) - a.annotation.lineno
        for a in node.args.args
        if a.annotation is not None and "typer." in ast.unparse(a.annotation)
    )
    return (node.end_lineno or 0) - node.lineno + 1 - docstring - options


@every_source
def test_files_and_functions_stay_short(path):
    functions = (n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef))

    long = {f.name: lines_of_code(f) for f in functions if lines_of_code(f) > MAX_FUNCTION}

    assert not long, f"functions of more than {MAX_FUNCTION} lines: {long}"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE


def test_a_name_of_a_file_stands_once_unless_it_means_the_same_everywhere():
    """A verb's file bears the name of what it calls, so the command line is left out."""
    library = [path for path in SOURCES if "cli" not in path.relative_to(PACKAGE).parts]

    twice = {name for name, count in Counter(path.stem for path in library).items() if count > 1}

    assert twice <= SHARED_NAMES.keys(), "two ideas under one name; name each for what it holds"
    assert SHARED_NAMES.keys() <= twice, "a name that stands once needs no leave"


def reading_list() -> list[Path]:
    """The files that docs/architecture.md tells a newcomer to read."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.split("## What to read first")[1].split("What can be left alone")[0]
    return [PACKAGE / name for name in re.findall(r"`([\w/]+\.py)`", table)]


def test_what_a_newcomer_reads_is_there_and_about_as_long_as_the_page_says():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in reading_list())

    assert len(reading_list()) > 40
    assert 10_000 <= lines <= 12_000


@pytest.mark.parametrize("folder", ["tokenizers", "generation"])
def test_the_folders_of_things_hold_no_python(folder):
    assert (ROOT / folder).is_dir()
    assert not list((ROOT / folder).rglob("*.py"))


def declared() -> set[str]:
    """Distributions that pyproject.toml names, the extras' too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return distributions([*project["dependencies"], *chain.from_iterable(extras)])


def distributions(requirements: Iterable[str]) -> set[str]:
    """Normalised names: 'ray[data]>=2.40' -> 'ray'."""
    return {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requirements}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def with_their_own(names: set[str]) -> set[str]:
    """The distributions, those that they need, and so on, as far as they are installed here."""
    found: set[str] = set()
    while todo := names - found:
        found |= todo
        for name in todo:
            with suppress(metadata.PackageNotFoundError):  # an extra that is not installed
                names = names | distributions(metadata.requires(name) or [])
    return found


def test_no_part_bears_the_import_name_of_a_dependency():
    needed = with_their_own(declared())
    taken = {
        top
        for top, owners in metadata.packages_distributions().items()
        if not needed.isdisjoint(map(normal, owners))
    }
    parts = {path.parent.name for path in SOURCES} | {path.stem for path in PACKAGE.glob("*.py")}

    assert {"torch", "tokenizers", "transformers"} <= taken
    assert not parts & taken - {"__init__"}


def tracked() -> list[Path]:
    """Files under version control; all tests below skip outside a repository."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_large_files_are_weights_only():
    large = [path for path in tracked() if path.stat().st_size > LARGE]

    assert not [path for path in large if path.suffix not in (".safetensors", ".onnx")]


def test_text_files_end_with_one_newline():
    endings = {".py", ".md", ".toml", ".json", ".ipynb", ".yaml"}
    texts = {path: path.read_bytes() for path in tracked() if path.suffix in endings}

    wrong = [p for p, text in texts.items() if text and text[-2:].strip(b"\r")[-1:] != b"\n"]

    assert not wrong


@every_source
def test_no_message_names_an_extra_that_no_index_has(path):
    assert "fourm-lite[" not in path.read_text(encoding="utf-8")
