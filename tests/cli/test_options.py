"""What holds for all verbs: help in sentences, one `--json`, sources told before models."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from verbs import run

from fourm_lite.cli import app, arranged, output
from fourm_lite.cli.app import VERBS

ROOT = Path(__file__).resolve().parents[2]
COMMAND = app.build_app()
ENDLESS = {"serve"}  # a server answers over HTTP and has no result of its own
NO_SENTENCE = ("Of ", "In ", "With ", "From ", "For ", "By ", "Instead ", "Which ", "Who ", "How ")


def command(words):
    first, _, second = words.partition(" ")
    if first in app.GROUPS:
        return COMMAND.commands[first].commands[second]
    return COMMAND.commands[words]


def parameters():
    """Every argument and option of every verb with its help; hidden ones are told to nobody."""
    for words in VERBS:
        for parameter in command(words).params:
            if not getattr(parameter, "hidden", False) and parameter.name != "help":
                yield f"{words} {parameter.opts[-1]}", parameter.help or ""


@pytest.mark.parametrize(("name", "text"), [pytest.param(n, t, id=n) for n, t in parameters()])
def test_the_help_of_an_option_is_a_sentence(name, text):
    assert len(text.split()) >= 4, text
    assert text[0].isupper(), text
    assert text.rstrip("'\")").endswith((".", "...")), text
    assert not text.startswith(NO_SENTENCE), text


@pytest.mark.parametrize("words", VERBS)
def test_the_help_of_a_verb_begins_with_what_it_does(words):
    first = app.help_of(VERBS[words].run).split("\n")[0]

    assert first.endswith((".", ",")) or len(first) > 70
    assert first.split()[0] not in ("A", "An", "The")


@pytest.mark.parametrize("words", [words for words in VERBS if words not in ENDLESS])
def test_json_means_the_same_in_every_verb(words):
    (option,) = [p for p in command(words).params if "--json" in p.opts]

    assert option.metavar == "[FILE]"
    assert option.help.startswith("Print the result as one JSON value and nothing else on stdout")


def test_an_option_that_two_verbs_share_says_the_same_in_both():
    shared = {
        "--device",
        "--tokenizers",
        "--text-tokenizer",
        "--dtype",
        "--json",
        "--rerank-weight",
    }
    said = {}
    for words in VERBS:
        for parameter in command(words).params:
            for name in shared & set(parameter.opts):
                said.setdefault(name, set()).add(parameter.help)

    said["--device"] = {text for text in said["--device"] if "Run on this device" in text}
    assert all(len(texts) == 1 for texts in said.values()), said


def test_every_verb_that_answers_by_a_model_says_what_its_weights_are_held_as():
    learn = {"finetune", "add-embedding", "spread"}  # these write a model, or what belongs to it
    flags = {words: {flag for p in command(words).params for flag in p.opts} for words in VERBS}

    lack = {words for words, own in flags.items() if "--model" in own and "--dtype" not in own}

    assert lack == learn
    assert "--dtype" in flags["demo"]


def test_a_precision_is_refused_before_any_work(capsys, tmp_path):
    (tmp_path / "captions.jsonl").write_text("")
    wrong = {
        "demo --dtype int9": "Did you mean 'int8'",
        f"evaluate tokenizers --data {tmp_path} --dtype int9": "Did you mean 'int8'",
        f"pseudolabel {tmp_path} -o {tmp_path}/out --dtype int9": "Did you mean 'int8'",
        f"pseudolabel {tmp_path} -o {tmp_path}/out --dtype int8": "--model",
    }

    for line, told in wrong.items():
        code, out, err = run(capsys, *line.split())
        assert (code, out) == (2, ""), line
        assert told in err, line


def test_json_is_printed_alone_or_written_beside_the_text(capsys, tmp_path):
    _, text, _ = run(capsys, "plan", "rgb2all")
    _, printed, _ = run(capsys, "plan", "rgb2all", "--json")
    _, beside, _ = run(capsys, "plan", "rgb2all", "--json", tmp_path / "plan.json")
    _, dashed, _ = run(capsys, "plan", "--json", "-", "rgb2all")

    value = json.loads(printed)
    assert value["targets"]
    assert json.loads((tmp_path / "plan.json").read_text()) == value == json.loads(dashed)
    assert beside == text


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("info --json mini", "info --json=- mini"),
        ("info mini --json", "info mini --json=-"),
        ("info mini --json out.json", "info mini --json=out.json"),
        ("evaluate knn --json out --k 3", "evaluate knn --json=out --k 3"),
        ("evaluate knn --json --k 3", "evaluate knn --json=- --k 3"),
        ("info --json=a mini", "info --json=a mini"),
        ("mix -- --json a.json", "mix -- --json a.json"),
        ("index info IDX", "index|info IDX"),
        ("index build IDX --kind ivf_sq", "index|build IDX --kind ivf_sq"),
        ("index info -o IDX", "index info -o IDX"),
        ("index info other --out=IDX", "index info other --out=IDX"),
        ("index PHOTOS -o IDX", "index PHOTOS -o IDX"),
        ("--max-bytes 2GB index info IDX", "--max-bytes 2GB index|info IDX"),
        ("--max-bytes=2GB evaluate knn --json out", "--max-bytes=2GB evaluate knn --json=out"),
        ("--max-bytes", "--max-bytes"),
    ],
)
def test_a_line_is_read_as_it_is_meant(line, read):
    assert arranged(line.split()) == [word.replace("|", " ") for word in read.split(" ")]


def test_tools_of_an_index_have_one_name_in_two_spellings(capsys):
    for tool in ("info", "check", "compact", "calibrate", "build"):
        _, new, _ = run(capsys, "index", tool, "--help")
        _, former, _ = run(capsys, f"index-{tool}", "--help")

        assert new.splitlines()[2:] == former.splitlines()[2:]


MISSING = [
    "index nowhere -o IDX",
    "finetune nowhere -m mini -o OUT",
    "calibrate -m mini --data nowhere",
    "evaluate retrieval --data nowhere",
    "evaluate same-class --data nowhere",
    "evaluate steps --data nowhere",
    "evaluate zeroshot --data nowhere",
    "evaluate knn -m mini --data nowhere",
    "evaluate probe -m mini --data nowhere",
    "evaluate fewshot -m mini --data nowhere",
    "evaluate any2any --data nowhere",
    "evaluate tokenizers --data nowhere",
    "add-embedding net -e timm:x -p nowhere -o OUT",
    "pseudolabel nowhere -o OUT",
    "tokenize nowhere -t rgb_mini -o OUT",
    "mix-photos nowhere --count 2 -o out.jsonl",
    "export mini -o OUT --photos nowhere",
    "demo --photos nowhere",
    "train nowhere.toml",
    "generate -m mini --items nowhere -t caption",
    "generate -m mini -i rgb=nowhere.jpg -t caption",
    "search nowhere dog",
]


@pytest.mark.parametrize("line", MISSING)
def test_a_source_that_is_not_there_is_told_before_a_model_is_opened(
    capsys, tmp_path, monkeypatch, line
):
    def opened(*args, **kwargs):
        raise AssertionError("a model was opened")

    monkeypatch.chdir(tmp_path)
    for place in ("search.spaces.open_space", "embedders.load.load_embedder", "io.checkpoint.read",
                  "pipeline.pipeline.FourMPipeline.from_pretrained"):  # fmt: skip
        monkeypatch.setattr(f"fourm_lite.{place}", opened)

    code, out, err = run(capsys, *line.split())

    assert (code, out) == (2, "")
    assert "nowhere" in err
    assert list(tmp_path.iterdir()) == []


def test_sources_elsewhere_and_patterns_are_left_to_their_reader():
    from fourm_lite.cli.options import require_source

    for text in ("s3://bucket/photos", "https://host/a.tar", "shard-{000..009}.tar", "a/*.tar"):
        require_source(text, "PHOTOS")
        require_source(Path(text), "PHOTOS")


def test_a_query_needs_no_option(capsys, monkeypatch, tmp_path):
    from fourm_lite.cli import search
    from fourm_lite.errors import ConfigError

    (tmp_path / "dog.jpg").write_bytes(b"")

    assert search._asked(["a dog"]) == (["a dog"], [])
    assert search._asked([str(tmp_path / "dog.jpg")]) == ([], [str(tmp_path / "dog.jpg")])
    with pytest.raises(ConfigError, match='did you mean "a dog"'):
        search._asked(["a", "dog"])


def test_a_misspelt_picture_is_not_searched_as_words():
    from fourm_lite.cli.search import _asked
    from fourm_lite.errors import ConfigError

    with pytest.raises(ConfigError, match=r"there is no photo at 'koalla\.jpg'"):
        _asked(["koalla.jpg"])

    assert _asked(["what is on koalla.jpg"]) == (["what is on koalla.jpg"], [])
    assert _asked(["a" * 5000 + ".jpg"])[1] == []


def test_quiet_and_verbose_stand_anywhere(capsys):
    log = logging.getLogger("fourm_lite.cli.test")
    for words, notes in (((), 0), (("-v",), 1), (("--quiet",), -1)):
        run(capsys, *words, "plan", "rgb2all")
        output.say("a note", aside=True)
        output.say_error("an error")
        log.info("a detail")
        err = capsys.readouterr().err
        run(capsys, "plan", "rgb2all", *words)
        output.say("a note", aside=True)

        assert ("a note" in err) == ("a note" in capsys.readouterr().err) == (notes >= 0)
        assert ("a detail" in err) == (notes > 0)
        assert "an error" in err
    run(capsys, "plan", "rgb2all")


def test_the_shell_completes_verbs_and_options():
    for line, wanted in (("fourm-lite sea", "search"), ("fourm-lite search --capt", "--caption")):
        env = {**os.environ, "_FOURM_LITE_COMPLETE": "complete_bash", "COMP_WORDS": line,
               "COMP_CWORD": str(line.count(" ")), "PYTHONPATH": str(ROOT)}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "fourm_lite"], env=env, capture_output=True, text=True
        )

        assert wanted in done.stdout.split(), done.stderr


def test_progress_in_a_file_of_messages_says_the_total_and_the_time_left(capsys, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))

    with output.progress("photos") as told:
        for done in (10, 20, 30):
            told.tell("photos", done, 100, "7 a second")

    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "photos 30 of 100, about 0:02:20 left, 7 a second"


def test_defaults_in_the_help_of_finetune_are_those_of_the_library():
    from fourm_lite.finetune.finetune import FinetuneConfig

    for option in command("finetune").params:
        _, found, number = (option.help or "").partition("by default ")
        if found and number[0].isdigit():
            assert float(number.rstrip(".")) == getattr(FinetuneConfig(), option.name)


def test_lists_in_help_are_those_of_the_library():
    from fourm_lite.backbone.export import FORMS
    from fourm_lite.embedders.conversion import KINDS
    from fourm_lite.embedders.convert import CONVERSIONS

    for words, option, names in (
        ("export", "--forms", FORMS), ("convert", "--family", (*KINDS, *CONVERSIONS)),
    ):  # fmt: skip
        (text,) = [p.help for p in command(words).params if option in p.opts]
        assert all(name in text for name in names)


def test_every_function_of_a_verb_names_its_types():
    for verb in VERBS.values():
        hints = typing.get_type_hints(verb.run)

        assert set(inspect.signature(verb.run).parameters) <= set(hints)


def test_arguments_are_checked_before_torch_is_imported(tmp_path):
    lines = [line for line in MISSING if not line.startswith(("generate -m mini -i", "search"))]
    lines += ["search", "index x", "evaluate retrieval", "finetune x --epochs many", "info"]
    code = (
        "import sys\n"
        "from fourm_lite.cli import main\n"
        f"for line in {lines!r}:\n"
        "    try: main(line.split())\n"
        "    except SystemExit as end: assert end.code == 2, line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr[-2000:]
