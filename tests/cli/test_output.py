"""Nothing that a file is called, or says, moves the cursor of the terminal that shows it."""

from __future__ import annotations

import ast
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout import PACKAGE

from fourm_lite.cli import main, output
from fourm_lite.cli.index import print_report
from fourm_lite.cli.output import print_facts, print_json, print_table, say, set_loudness
from fourm_lite.names import shown
from fourm_lite.photos.item import Skipped
from fourm_lite.search.index.ingest import IngestReport

NASTY = "\x1b]0;OWNED\x07\x1b[2J\x9b2J\r\x7f\u202e\u2028\nnot indexed: x.png\ud800\udce9"


def obeyed(text):
    return [c for c in text if not c.isprintable() and c != "\n"]


PRINTERS = {
    "say": lambda: say(NASTY), "aside": lambda: say(NASTY, aside=True),
    "facts": lambda: print_facts({NASTY: NASTY}), "json": lambda: print_json({NASTY: [NASTY]}),
    "table": lambda: print_table(("", NASTY), [("1", NASTY)]),
    "one line": lambda: print_table(("", "id"), [("1", NASTY)], whole=2),
    "report": lambda: print_report(NASTY, 0, IngestReport(unreadable=[Skipped(NASTY, NASTY)])),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTERS)
def test_what_is_printed_holds_nothing_that_a_terminal_obeys(name, capsys):
    PRINTERS[name]()

    out, err = capsys.readouterr()

    assert out or err
    assert not obeyed(out + err)


def test_a_name_cannot_write_a_line_of_its_own(capsys):
    print_report("idx", 0, IngestReport(unreadable=[Skipped("a\nrate  9 photos", "broken")]))

    lines = capsys.readouterr().out.splitlines()

    assert not [line for line in lines if line.startswith("rate  9")]


def test_printed_json_is_the_value(capsys):
    value = {"name": "\x1b[2J\x9b\x7f\u202e é 東 \U000e0001", "list": ["\n", "\\", '"']}

    print_json(value)

    assert json.loads(capsys.readouterr().out) == value


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_shown_without_control_characters(text):
    assert shown(text).isprintable()
    assert shown(shown(text)) == shown(text)
    if text.isprintable():
        assert shown(text) == text


def test_errors_and_warnings_are_shown_so_too(capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        main(["info", f"{tmp_path}/\x1b[2Jx"])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    set_loudness(0)
    logging.getLogger("fourm_lite").warning("%s", NASTY)

    assert not obeyed(capsys.readouterr().err)


def test_verbs_print_through_one_function():
    free = [
        f"{path.name}:{node.lineno}"
        for path in sorted((PACKAGE / "cli").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        and path.name != "output.py"
    ]  # fmt: skip

    assert not free


def test_time_that_is_left_counts_what_this_run_did(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 30.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))

    with output.progress("steps") as told:
        told.step(200, 300, {})  # goes on from 200
        told.step(210, 300, {})

    assert capsys.readouterr().err.splitlines()[-1].endswith("210 of 300, about 0:03:00 left")
