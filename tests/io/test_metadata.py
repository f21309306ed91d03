import pytest

from fourm_lite.errors import CheckpointError
from fourm_lite.io.weights_file import MAX_LITERAL, parse_value, read_metadata

VALUES = [
    None, True, False, 0, -3, 4, 4.0, 0.99, 1e-05, -1.5e20, "GELU", "rgb@224", "", "no", "yes",
    "BottleneckMLP/B_2-Wi_16", "off", "NoneType", "a, b", "1.2.3", "0x", "nan", "inf", "{unclosed",
    [], ["caption", "rgb@224"], [1, [2.5, None]], (1, 2), {"a": 1, "b": ["x"]}, ["it's", 'a "q"'],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_read_back_from_its_string(value):
    found = parse_value(str(value))

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("true", True), ('["a", "b"]', ["a", "b"]), ('{"a": null}', {"a": None})],
)
def test_json_words_are_read_too(text, value):
    assert parse_value(text) == value


HOSTILE = [
    "__import__('os').system('touch /tmp/fourm_lite_was_here')",
    "[__import__('os').system('touch /tmp/fourm_lite_was_here')]",
    "!!python/object/apply:os.system ['touch /tmp/fourm_lite_was_here']",
    "lambda: 0", "[lambda:0]", "9**9**9", "[9**9**9]", "['a' * 10**9]", "{[]: 1}", "{1: 2}",
    "[" * 5000, "(" * 5000 + ")" * 5000, "[" * 150 + "]" * 150, "[1" + ",1" * 4999 + "]",
    "[" + "-" * 9000 + "1]", "[" + "- " * 4000 + "1]", "[" + "not " * 2000 + "1]",
    "[a" + ".b" * 4000 + "]", "[1or 2]", "[1if 1else 2]", "[0x1for x in y]", "[1 is 1]",
    "['a'()]", "['a'['b']]", "&a [*a, *a]", "[1e999]", "{1, 2}", "b'bytes'", "[b'x']", "[...]",
    "[1j]", "9" * 5000, "1" * 30, "1e99999", "'\\x00\\d'", "['\\d']", "f'{1}'", "[f'{1}']",
    "\x00", "['\x00']",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_what_is_no_plain_literal_stays_text_or_plain_data(text, tmp_path):
    found = parse_value(text)

    assert found == text or isinstance(found, list)
    assert not tmp_path.with_name("fourm_lite_was_here").exists()


def test_long_values_stay_text():
    text = "[" + "1," * MAX_LITERAL + "]"

    assert parse_value(text) is text


def test_names_of_shared_tensors_are_aliases_and_no_config():
    metadata = {"encoder.mod_emb": "decoder.mod_emb", "dim": "8", "format": "pt", "x": "y"}

    aliases, config = read_metadata(metadata, {"decoder.mod_emb"})

    assert aliases == {"encoder.mod_emb": "decoder.mod_emb"}
    assert config == {"dim": 8, "x": "y"}


def test_an_entry_that_names_two_tensors_of_the_file_is_no_alias():
    aliases, _ = read_metadata({"a": "b"}, {"a", "b"})

    assert aliases == {}


def test_our_own_config_wins():
    _, config = read_metadata({"config": '{"dim": 8}', "dim": "9"}, ())

    assert config == {"dim": 8}


def test_our_own_config_must_be_json():
    with pytest.raises(CheckpointError, match="metadata key 'config'"):
        read_metadata({"config": "{'dim': 8}"}, ())
