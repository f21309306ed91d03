import hashlib
import http.server
import json
import logging
import pickle
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.io import hub
from fourm_lite.io.hub import ORIGINAL_TEXT_TOKENIZER, RemoteFile, fetch
from fourm_lite.tokenization.words.text import (
    TextTokenizer,
    load_text_tokenizer,
    special_words,
    train_text_tokenizer,
)

TEXTS = ["A dog sits on the grass.", "two dogs play on a beach", "the hot dog stand", "a boat"] * 4
CLASSES = ("hot dog", "boat")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_text_tokenizer(
        TEXTS, vocab_size=400, classes=CLASSES, bins=30, num_sentinels=12, min_frequency=1
    )


def test_special_words_come_first_and_in_order(tokenizer):
    words = special_words(classes=CLASSES, bins=30, num_sentinels=12)

    assert [tokenizer.id_of(word) for word in words] == list(range(len(words)))
    assert (tokenizer.pad, tokenizer.unk, tokenizer.sos, tokenizer.eos) == (0, 1, 2, 3)
    assert tokenizer.sentinels == tuple(range(4, 16))
    assert tokenizer.bins == 30


def test_training_twice_gives_the_same_vocabulary(tokenizer):
    again = train_text_tokenizer(
        TEXTS, vocab_size=400, classes=CLASSES, bins=30, num_sentinels=12, min_frequency=1
    )

    assert again.to_json() == tokenizer.to_json()


def test_class_names_and_coordinates_are_one_token_each(tokenizer):
    ids = tokenizer.encode("[S_1] v0=3 v1=29 Hot Dog boat [S_2]")

    assert [tokenizer.decode([i]) for i in ids] == [
        "[S_1]", "v0=3", "v1=29", "hot dog", "boat", "[S_2]"
    ]  # fmt: skip


def test_texts_of_the_training_set_come_back(tokenizer):
    for text in TEXTS:
        assert tokenizer.detokenize(tokenizer.tokenize(text).ids) == [text.lower()]


def test_a_vocabulary_has_no_more_words_than_asked():
    small = train_text_tokenizer(TEXTS, vocab_size=90, bins=10, num_sentinels=5)

    assert small.vocab_size <= 90


def test_special_words_that_do_not_fit_are_an_error():
    with pytest.raises(ConfigError, match="do not fit"):
        train_text_tokenizer(TEXTS, vocab_size=100, bins=30)
    with pytest.raises(ConfigError, match="unique"):
        train_text_tokenizer(TEXTS, vocab_size=10_000, classes=["dog", "dog"])


def test_a_batch_is_padded_and_says_where(tokenizer):
    batch = tokenizer.tokenize(["a dog", "two dogs play on a beach"])

    assert batch.ids.dtype == torch.int64
    assert batch.ids.shape == batch.valid.shape
    assert (batch.ids[~batch.valid] == tokenizer.pad).all()
    assert [row[v][-1].item() for row, v in zip(batch.ids, batch.valid, strict=True)] == [3, 3]
    assert torch.equal(tokenizer.tokenize("a dog").ids[0], batch.ids[0][batch.valid[0]])


def test_a_long_text_is_cut_with_its_end(tokenizer):
    batch = tokenizer.tokenize("two dogs play on a beach", max_tokens=4)

    assert batch.ids.shape == (1, 4)
    assert tokenizer.eos not in batch.ids


def test_nothing_to_tokenize_gives_empty_tensors(tokenizer):
    assert tokenizer.tokenize([]).ids.shape == (0, 0)
    assert tokenizer.tokenize("", eos=False).ids.shape == (1, 0)
    assert tokenizer.detokenize(torch.zeros(0, dtype=torch.int64)) == [""]


def test_detokenizing_ends_at_the_end_of_text(tokenizer):
    ids = [*tokenizer.encode("a dog"), tokenizer.eos, *tokenizer.encode("boat"), tokenizer.pad]

    assert tokenizer.detokenize(torch.tensor(ids)) == ["a dog"]


def test_detokenizing_keeps_coordinates_and_drops_sentinels(tokenizer):
    ids = tokenizer.encode("[S_1] v0=3 boat [S_2]")

    assert tokenizer.detokenize(torch.tensor([ids])) == ["v0=3 boat"]


@given(text=st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_can_be_encoded_and_settles_after_one_turn(tokenizer, text):
    ids = tokenizer.encode(text)

    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode(ids), str)


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_an_id_beyond_the_vocabulary_is_an_error(tokenizer, bad):
    with pytest.raises(ShapeError, match="another tokenizer"):
        tokenizer.decode([bad])


def test_wrong_types_are_errors(tokenizer):
    with pytest.raises(FourMError, match="reads str"):
        tokenizer.encode(b"a dog")
    with pytest.raises(ShapeError, match="detokenize"):
        tokenizer.detokenize(torch.zeros(1, 2, 3, dtype=torch.int64))


def test_a_saved_tokenizer_loads_from_its_file_and_its_folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "text_tokenizer.json")

    for source in (tmp_path, tmp_path / "text_tokenizer.json", str(tmp_path)):
        assert load_text_tokenizer(source).to_json() == tokenizer.to_json()
    assert [p.name for p in tmp_path.iterdir()] == ["text_tokenizer.json"]


def test_a_tokenizer_travels_to_another_process(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a hot dog") == tokenizer.encode(
        "a hot dog"
    )


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '{"version": "1.0"}', "\x00\x01"])
def test_a_broken_file_is_an_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)

    with pytest.raises(FourMError, match="not a `tokenizers` JSON file"):
        load_text_tokenizer(path)


def test_a_missing_file_says_what_to_pass(tmp_path):
    with pytest.raises(FourMError, match="pass a file"):
        load_text_tokenizer(tmp_path)


def test_a_vocabulary_without_special_words_is_an_error(tokenizer, tmp_path):
    content = json.loads(tokenizer.to_json())
    content["added_tokens"] = []
    content["model"]["vocab"] = {"[UNK]": 0, "a": 1}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))

    with pytest.raises(ConfigError, match="special words"):
        load_text_tokenizer(path)


# --- fetching


@pytest.fixture
def remote(tokenizer, tmp_path) -> RemoteFile:
    path = tmp_path / "remote.json"
    tokenizer.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return RemoteFile(name="text.json", url=path.as_uri(), sha256=digest)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(folder))
    return folder


def test_the_original_is_fetched_once(remote, cache, tokenizer, tmp_path):
    first = load_text_tokenizer("4m", remote=remote)
    (tmp_path / "remote.json").unlink()
    second = load_text_tokenizer("4m", remote=remote)

    assert first.to_json() == second.to_json() == tokenizer.to_json()
    assert [p.name for p in cache.iterdir()] == ["text.json"]


def test_fetching_works_over_http(remote, cache, tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            logging.getLogger(__name__).debug(*args)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/remote.json"
        kept = fetch(RemoteFile(name="text.json", url=url, sha256=remote.sha256))
        server.shutdown()

    assert hashlib.sha256(kept.read_bytes()).hexdigest() == remote.sha256


def test_a_damaged_copy_is_fetched_again(remote, cache):
    fetch(remote).write_bytes(b"damaged")

    assert hashlib.sha256(fetch(remote).read_bytes()).hexdigest() == remote.sha256


def test_a_file_that_is_not_the_expected_one_is_not_kept(remote, cache):
    wrong = RemoteFile(name="text.json", url=remote.url, sha256="0" * 64)

    with pytest.raises(FourMError, match="not the expected one"):
        fetch(wrong)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_file_that_is_too_long_is_not_read_to_its_end(remote, cache):
    short = RemoteFile(name="text.json", url=remote.url, sha256=remote.sha256, max_bytes=10)

    with pytest.raises(FourMError, match="not the expected one"):
        fetch(short)


def test_without_network_the_error_tells_to_pass_a_path(cache, remote):
    nowhere = RemoteFile(
        name="text.json",
        url="http://127.0.0.1:9/nothing.json",
        sha256=remote.sha256,
        advice=ORIGINAL_TEXT_TOKENIZER.advice,
    )

    with pytest.raises(FourMError, match="pass the path of the file"):
        load_text_tokenizer("4m", remote=nowhere)


def test_the_expected_hash_is_that_of_the_original_file(shared):
    path = shared / "golden" / ORIGINAL_TEXT_TOKENIZER.name
    if not path.is_file():
        pytest.skip(f"no file at {path}")

    assert hashlib.sha256(path.read_bytes()).hexdigest() == ORIGINAL_TEXT_TOKENIZER.sha256


def test_arrays_of_ids_are_read_as_tensors_are(tokenizer):
    ids = tokenizer.tokenize(["a dog", "two dogs on the grass"]).ids

    assert tokenizer.detokenize(ids.numpy()) == tokenizer.detokenize(ids)
    for bad in (ids.numpy().astype("f4"), "text", None):
        with pytest.raises(ShapeError):
            tokenizer.detokenize(bad)


@pytest.mark.parametrize(
    ("text", "unknown", "count"),
    [
        ("a dog on the GRASS!", [], 5),
        ("a 犬 on a beach", ["犬"], 5),
        ("собака, 犬", ["собака", "犬"], 2),
        ("!?", [], 0),
        ("", [], 0),
        ("a hot dog", [], 2),
    ],
)
def test_words_that_the_vocabulary_does_not_hold_are_named_as_they_were_written(
    tokenizer, text, unknown, count
):
    assert tokenizer.unknown_words(text) == (unknown, count)


def test_a_word_of_single_letters_alone_is_unknown(tokenizer):
    found, _ = tokenizer.unknown_words("dog zzzz")

    assert found == ["zzzz"]
