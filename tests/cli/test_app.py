from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from verbs import run

import fourm_lite
from fourm_lite.cli import app, main
from fourm_lite.cli.app import VERBS, Verb
from fourm_lite.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
seen: list[dict[str, object]] = []


def mix(
    paths: Annotated[list[Path], typer.Argument(help="files [B, L] to mix")],
    way: Annotated[Literal["fast", "slow"], typer.Option(help="how [bold]so[/bold]")] = "fast",
    times: Annotated[int, typer.Option("--times", "-n", help="how often", min=1)] = 1,
    names: Annotated[list[str] | None, typer.Option("--name", help="may be given twice")] = None,
) -> None:
    """Mix files
    of two kinds.

    Raises:
        ConfigError: three files
    """
    seen.append({"paths": paths, "way": way, "times": times, "names": names})
    if len(paths) == 3:
        raise ConfigError("expected two files [B, 2], got 3; leave one out")
    if len(paths) == 4:
        raise RuntimeError("a bug")


@pytest.fixture
def with_mix(monkeypatch):
    """The table of verbs, with `mix` and with `evaluate mix`."""
    table = {name: Verb(mix) for name in ("mix", "evaluate mix")}
    build = app.build_app
    monkeypatch.setattr(app, "build_app", lambda asked: build({**VERBS, **table}, asked))
    seen.clear()


def test_the_help_names_every_verb_and_imports_no_torch():
    code = (
        "import sys, fourm_lite.cli\n"
        "try: fourm_lite.cli.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    for words, verb in VERBS.items():
        if not words.startswith("evaluate "):
            assert f"  {words} " in done.stdout
            assert " ".join(app.help_of(verb.run).split()[:3]) in done.stdout


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fourm_lite", "--version"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip

    assert done.stdout == f"fourm-lite {fourm_lite.__version__}\n"


@pytest.mark.parametrize("words", VERBS)
def test_every_verb_of_the_table_exists_and_explains_its_options(capsys, words):
    code, out, _ = run(capsys, *words.split(), "--help")

    assert code == 0
    assert "--help" in out


def test_no_words_at_all_show_the_help(capsys):
    code, out, err = run(capsys)

    assert code in (0, 2)
    assert "Usage" in out + err


@pytest.mark.parametrize("words", [("infos",), ("info",), ("info", "x", "--jason"), ("--nope",)])
def test_a_misused_command_ends_with_code_2_and_a_message(capsys, words):
    code, out, err = run(capsys, *words)

    assert code == 2
    assert out == ""
    assert err


@pytest.mark.parametrize("words", [("mix",), ("evaluate", "mix")])
def test_a_verb_gets_its_arguments_in_the_types_it_names(capsys, with_mix, words):
    code, _, err = run(
        capsys, *words, "a", "b", "--way", "slow", "-n", "3", "--name", "x", "--name", "y"
    )

    assert (code, err) == (0, "")
    assert seen == [
        {"paths": [Path("a"), Path("b")], "way": "slow", "times": 3, "names": ["x", "y"]}
    ]


def test_defaults_are_those_of_the_function(capsys, with_mix):
    run(capsys, "mix", "a")

    assert seen == [{"paths": [Path("a")], "way": "fast", "times": 1, "names": None}]


@pytest.mark.parametrize("options", [("--times", "0"), ("--way", "none"), ("--times", "x")])
def test_values_outside_their_type_are_refused(capsys, with_mix, options):
    code, _, err = run(capsys, "mix", "a", *options)

    assert code == 2
    assert options[0] in err
    assert seen == []


def test_the_help_of_a_verb_is_its_docstring_without_sections_and_keeps_brackets(
    capsys, with_mix, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")

    _, out, _ = run(capsys, "mix", "--help")

    assert "of two kinds." in out
    assert "Raises" not in out
    assert "files [B, L] to mix" in out
    assert "how [bold]so[/bold]" in out


def test_a_group_lists_its_verbs(capsys, with_mix):
    _, out, _ = run(capsys, "evaluate", "--help")

    assert "Measure a model on data." in out
    assert "Mix files" in out


def test_an_error_of_the_library_is_one_message_and_code_2(capsys, with_mix):
    code, out, err = run(capsys, "mix", "a", "b", "c")

    assert code == 2
    assert out == ""
    assert err == "error: expected two files [B, 2], got 3; leave one out\n"


@pytest.mark.parametrize("words", [("--debug", "mix"), ("mix", "--debug")])
def test_debug_shows_where_an_error_came_from(with_mix, words):
    with pytest.raises(ConfigError):
        main([*words, "a", "b", "c"])


def test_debug_after_two_dashes_is_an_argument_like_any_other(capsys, with_mix):
    run(capsys, "mix", "--", "--debug")

    assert seen[0]["paths"] == [Path("--debug")]


def test_a_bug_is_not_dressed_up_as_a_bad_request(with_mix):
    with pytest.raises(RuntimeError, match="a bug"):
        main(["mix", "a", "b", "c", "d"])
