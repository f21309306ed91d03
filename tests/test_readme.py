"""README and docs keep their word: Python runs, commands exist, files are there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from fourm_lite.demo.examples import make_gallery

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FROM_START = (README, *(ROOT / "docs" / f"{n}.md" for n in ("getting-started", "generate", "vit")))
"""Pages whose Python runs from its first block to the last, with nothing but what ships."""


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [block for language, block in FENCE.findall(text) if language in languages]


def commands() -> list[list[str]]:
    """The words of every `fourm-lite` command in the shell blocks of all pages."""
    shell = (block for page in PAGES for block in blocks(page, "sh", "bash", "shell", "console"))
    text = "".join(shell).replace("\\\n", " ")
    lines = dict.fromkeys(line.removeprefix("$ ").strip() for line in text.splitlines())
    split = (shlex.split(line, comments=True) for line in lines)
    return [words for words in split if words and Path(words[0]).name == "fourm-lite"]


@cache
def help_of(*verb: str) -> str:
    """The help text of `fourm-lite VERB ...`, wide enough that no option is cut."""
    env = os.environ | {"COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "fourm_lite", *verb, "--help"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"no such command: {' '.join(verb)}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("page", FROM_START, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_gallery(None, tmp_path / "photos")
    namespace: dict[str, object] = {"__name__": "page"}

    for number, block in enumerate(blocks(page, "python"), start=1):
        if "EPFL-VILAB/" in block:  # with a hub cache in tests/published
            continue
        exec(compile(block, f"{page.name}, python block {number}", "exec"), namespace)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_a_page_exists_with_its_options(words):
    named = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[A-Za-z]", word)]
    text = help_of()
    verb: list[str] = []
    if re.search(rf"^\W*{re.escape(' '.join(words[1:3]))}\s", text, re.MULTILINE):  # `index info`
        verb, text = words[1:3], help_of(*words[1:3])
    for word in words[1:]:
        # a group of commands says so in its usage line; `evaluate retrieval` has two verbs
        if word.startswith("-") or "COMMAND [ARGS]" not in text:
            break
        assert re.search(rf"^\W*{re.escape(word)}\s", text, re.MULTILINE), f"no command '{word}'"
        verb.append(word)
        text = help_of(*verb)

    missing = [name for name in named if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)]
    assert not missing, f"'{' '.join(verb)}' has no option {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_links_to_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))

    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_paths_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests|fourm_lite|generation|tokenizers|docs)/[\w./-]+)`", text))

    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_make_goals_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    goals = set(re.findall(r"^make (\w+)", "\n".join(blocks(README, "sh")), re.MULTILINE))

    assert {"demo", "test"} <= goals
    assert all(re.search(rf"^{goal}:", makefile, re.MULTILINE) for goal in goals)
