import json

import pytest

from fourm_lite.errors import CheckpointError
from fourm_lite.io.strict_json import MAX_JSON_BYTES, dump_json, parse_json, read_json_object

BAD = {
    "a key twice": '{"dim": 8, "dim": 9}',
    "a key twice, deep": '{"a": [{"b": 1, "b": 2}]}',
    "NaN": '{"a": NaN}',
    "infinity": '{"a": -Infinity}',
    "a float beyond range": '{"a": 1e999}',
    "an integer of many digits": '{"a": ' + "9" * 5000 + "}",
    "a little too deep": "[" * 65 + "]" * 65,
    "far too deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "truncated": '{"a": ',
    "two values": "{} {}",
    "empty": "",
    "not UTF-8": b'{"a": "\xff"}',
    "code": "__import__('os').system('true')",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_json_is_a_checkpoint_error_that_names_its_place(text):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        parse_json(text, "config.json")


def test_what_is_dumped_reads_back():
    value = {"dim": 8, "ratio": 4.5, "names": ["rgb@224", "größe"], "none": None, "on": True}

    assert parse_json(dump_json(value, "config"), "config") == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, "\ud800"])
def test_what_json_cannot_hold_is_not_dumped(value):
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        dump_json({"a": value}, "config")


def test_a_value_that_contains_itself_is_not_dumped():
    value = {}
    value["again"] = value

    with pytest.raises(CheckpointError):
        dump_json(value, "config")


def test_a_large_file_is_refused_without_being_parsed(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES * 1000)  # sparse: takes no space

    with pytest.raises(CheckpointError, match="at most"):
        read_json_object(path)


@pytest.mark.parametrize("value", [[], "text", 3, None, True])
def test_a_file_without_an_object_is_refused(tmp_path, value):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value))

    with pytest.raises(CheckpointError, match="should hold a JSON object"):
        read_json_object(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(CheckpointError, match="expected a file"):
            read_json_object(path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf{}")

    assert read_json_object(path) == {}
