"""What a server process answers: the same as `Search`, and a sentence for what it cannot."""

from __future__ import annotations

import base64
import io
import json
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import photo

from fourm_lite.client import SearchClient, ServerError
from fourm_lite.search.engine import Search
from fourm_lite.search.query import Query

from .conftest import make_index, start


def send(url, path, body=None, headers=None, *, kind="application/json"):
    """Status, headers and body of an answer."""
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    head = {**({"Content-Type": kind} if data is not None else {}), **(headers or {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, head)) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def as_png(picture) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def search(index):
    return Search.open(index)


@pytest.fixture(scope="module")
def client(server):
    return SearchClient(server.url)


ASKED = {
    "words": ({"text": "two dogs"}, Query.of(caption="two dogs")),
    "a picture": ({"image": as_png(photo(3))}, Query.of(rgb=photo(3))),
    "both": (
        {"text": "two dogs", "image": as_png(photo(3))},
        Query.of(caption="two dogs", rgb=photo(3)),
    ),
    "weights and not": (
        {"text": "two dogs", "not_text": "a red circle", "weights": {"text": 2, "not_text": 0.3}},
        Query.of(
            caption="two dogs",
            without={"caption": "a red circle"},
            weights={"caption": 2, "not-caption": 0.3},
        ),
    ),
    "another modality": (
        {"given": {"color_palette": "v0=1 v1=2"}},
        Query.of(color_palette="v0=1 v1=2"),
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_a_search_in_process(client, search, name):
    asked, query = ASKED[name]

    hits = client.search(k=12, **asked)

    wanted = search(query, k=12)
    assert hits.ids == wanted.ids
    assert np.allclose(hits.scores, wanted.scores, atol=1e-5)
    assert hits.columns["captions"] == wanted.columns["captions"]


def test_filters_and_reranking_are_those_of_a_search_in_process(client, search):
    hits = client.search("two dogs", k=5, where="year > 2020", rerank=4)

    wanted = search(caption="two dogs", k=5, where="year > 2020", rerank=4)
    assert hits.ids == wanted.ids
    assert np.allclose(hits.scores, wanted.scores, atol=1e-4, equal_nan=True)
    assert min(hits.columns["year"]) > 2020


def test_queries_at_once_are_answered_as_one_by_one(client, search):
    words = [f"{a} {b}" for a in ("a red", "a blue", "two") for b in ("circle", "square", "dogs")]
    wanted = [search(caption=w, k=3).ids for w in words]

    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda w: client.search(w, k=3).ids, words * 3))

    assert found == wanted * 3


def test_one_bad_query_among_many_at_once_is_refused_alone(client, search):
    def ask(where):
        try:
            return client.search("two dogs", k=3, where=where).ids
        except ServerError as error:
            return error.status

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, [None, "nothing = 1", None, "year >", None, None, None, None]))

    good = search(caption="two dogs", k=3).ids
    assert found == [good, 400, good, 400, good, good, good, good]


def test_more_like_a_row_begins_with_it(client):
    hits = client.search(like="shelf/05", k=3)

    assert hits.ids[0] == "shelf/05"
    assert hits.scores[0] == pytest.approx(1, abs=1e-5)


def test_a_form_with_a_file_asks_the_same_as_json(server, client):
    edge = "-----form"
    picture = as_png(photo(3))
    parts = [
        (b'name="image"; filename="x.png"\r\nContent-Type: image/png', picture),
        (b'name="text"', b"two dogs"),
        (b'name="k"', b"4"),
    ]
    data = b"".join(
        f"--{edge}\r\nContent-Disposition: form-data; ".encode() + head + b"\r\n\r\n" + v + b"\r\n"
        for head, v in parts
    )

    status, _, body = send(
        server.url, "/search", data + f"--{edge}--\r\n".encode(),
        kind=f"multipart/form-data; boundary={edge}",
    )  # fmt: skip

    assert status == 200, body
    told = json.loads(body)
    assert [h["id"] for h in told["hits"]] == client.search("two dogs", image=picture, k=4).ids


def test_the_answer_is_that_of_search_json(server, index, capsys):
    from fourm_lite.cli import main

    with pytest.raises(SystemExit):
        main(["search", str(index), "--caption", "two dogs", "-k", "3", "--json"])
    printed = json.loads(capsys.readouterr().out)

    _, _, body = send(server.url, "/search", {"text": "two dogs", "k": 3})

    told = json.loads(body)
    assert told.keys() == printed.keys()
    assert {n: v for n, v in told.items() if n != "hits"} == {
        n: v for n, v in printed.items() if n != "hits"
    }
    assert [h.keys() for h in told["hits"]] == [h.keys() for h in printed["hits"]]


def test_vectors_are_those_of_the_space(client, search):
    vectors = client.embed(["two dogs", {"image": as_png(photo(2))}])

    wanted = search.space.encode_query([{"caption": "two dogs"}, {"rgb": photo(2)}])
    assert np.allclose(vectors, wanted, atol=1e-5)


def test_one_text_or_picture_is_embedded_without_a_list(server, client):
    edge = "-----form"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
    data = head.encode() + as_png(photo(2)) + f"\r\n--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"

    answers = [
        send(server.url, "/embed", body, kind=kind)
        for body, kind in (
            ({"items": ["two dogs"]}, "application/json"),
            ({"text": "two dogs"}, "application/json"),
            (data, kind),
        )
    ]

    vectors = [json.loads(body)["vectors"] for _, _, body in answers]
    wanted = client.embed(["two dogs", {"image": as_png(photo(2))}])
    assert np.allclose([v[0] for v in vectors], wanted[[0, 0, 1]], atol=1e-5)


def test_any_modality_is_made_and_each_step_is_told(server, client):
    picture = as_png(photo(1))

    made = client.generate(image=picture, targets=["tok_vector_global", "color_palette"], seed=3)

    again = {"image": base64.b64encode(picture).decode(), "seed": 3, "stream": True}
    again["targets"] = ["tok_vector_global", "color_palette"]
    _, _, body = send(server.url, "/generate", again)
    lines = [json.loads(line) for line in body.splitlines()]
    assert set(made) == {"tok_vector_global", "color_palette"}
    assert made["tok_vector_global"]["picture"].startswith("data:image/png;base64,")
    assert lines[-1] == {"done": True}
    assert {n["target"]: n["output"] for n in lines if "output" in n} == made
    steps = [n for n in lines if "step" in n]
    assert [n["step"] for n in steps] == list(range(1, steps[-1]["of"] + 1))


BAD = {
    "no JSON": b"{",
    "a list": b"[]",
    "NaN": b'{"text": NaN}',
    "a key twice": b'{"k": 1, "k": 2, "text": "dogs"}',
    "deep": b'{"given": ' + b"[" * 200 + b"]" * 200 + b"}",
    "no UTF-8": b'{"text": "\xff"}',
    "nothing": b"{}",
    "an unknown field": b'{"text": "two dogs", "kk": 3}',
    "no text": b'{"text": 3}',
    "an empty text": b'{"text": "  "}',
    "a long text": json.dumps({"text": "a " * 2000}).encode(),
    "k of 0": b'{"text": "two dogs", "k": 0}',
    "k too large": b'{"text": "two dogs", "k": 51}',
    "k as a text": b'{"text": "two dogs", "k": "3"}',
    "k as a truth": b'{"text": "two dogs", "k": true}',
    "rerank too large": b'{"text": "two dogs", "rerank": 1000000}',
    "a path for a picture": b'{"image": "/etc/hostname"}',
    "a path for pixels": b'{"given": {"rgb": "/etc/hostname"}}',
    "a path for a grid": b'{"given": {"tok_rgb@32": "/etc/hostname"}}',
    "no picture": json.dumps({"image": base64.b64encode(b"nothing").decode()}).encode(),
    "half a picture": json.dumps(
        {"image": base64.b64encode(as_png(photo(0, (300, 200)))[:900]).decode()}
    ).encode(),
    "no such row": b'{"like": "../../etc/hostname"}',
    "no such modality": b'{"given": {"smell": "roses"}}',
    "token ids too large": b'{"given": {"caption": [99999999]}}',
    "numbers of no shape": b'{"given": {"tok_vector_global": [[1, 2], [3]]}}',
    "a weight of nothing": b'{"text": "two dogs", "weights": {"image": 1}}',
    "a weight that is none": b'{"text": "two dogs", "weights": {"text": "much"}}',
    "a filter that is none": b'{"text": "two dogs", "where": "year >>> 3"}',
    "a filter on nothing": b'{"text": "two dogs", "where": "colour = 3"}',
    "no way to compose": b'{"text": "two dogs", "compose": "sum"}',
    "words that nobody learnt": json.dumps({"text": "\u4f60\u597d"}).encode(),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_answered_by_a_sentence(server, name):
    status, headers, body = send(server.url, "/search", BAD[name])

    told = json.loads(body)["error"]
    assert 400 <= status < 500
    assert len(told.split()) > 3
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("k", [0, 51])
def test_the_range_of_k_that_is_told_is_the_one_that_is_taken(server, k):
    _, _, body = send(server.url, "/search", {"text": "two dogs", "k": k})

    assert json.loads(body)["error"] == f"'k' should be 1 to 50, got {k}"


@pytest.mark.parametrize(
    ("path", "body", "kind", "expected"),
    [
        ("/search", b"x" * (1 << 20) + b"x", "application/json", 413),
        ("/search", b"text=dogs", "text/plain", 415),
        ("/search", b"--nothing", "multipart/form-data", 400),
        ("/search", b"--x\r\nfoo", "multipart/form-data; boundary=x", 400),
        ("/embed", b'{"items": []}', "application/json", 400),
        ("/embed", b'{"items": [{}]}', "application/json", 400),
        ("/embed", b'{"items": [""]}', "application/json", 400),
        ("/embed", b'{"items": ["dogs"], "text": "dogs"}', "application/json", 400),
        ("/generate", b'{"text": "two dogs", "targets": ["smell"]}', "application/json", 400),
        ("/generate", b'{"targets": ["caption"]}', "application/json", 400),
        ("/generate", b'{"image": "x", "plan": "/etc/hostname"}', "application/json", 400),
        ("/nowhere", None, "", 404),
        ("/search", None, "", 405),
        ("/items/..%2f..%2fetc%2fhostname/thumbnail", None, "", 404),
        ("/items/shelf/03/thumbnail?side=99", None, "", 400),
        ("/static/..%2f__init__.py", None, "", 404),
    ],
)
def test_other_bad_requests_are_answered_by_a_sentence(server, path, body, kind, expected):
    status, _, answer = send(server.url, path, body, kind=kind)

    assert status == expected
    assert len(json.loads(answer)["error"].split()) > 3


def test_a_picture_of_too_many_pixels_is_never_decoded(index):
    from fourm_lite.serve.fields import Limits
    from fourm_lite.serve.service import Service

    service = Service(Search.open(index), Limits(pixels=1000))

    with pytest.raises(Exception, match="pixels"):
        service.question({"image": base64.b64encode(as_png(photo(0))).decode()})
    service.close()


def test_a_photo_is_shown_small_by_its_id(client):
    shown = Image.open(io.BytesIO(client.thumbnail("shelf/03", side=64)))

    assert shown.format == "JPEG"
    assert max(shown.size) <= 64


def test_a_file_that_took_a_photos_place_is_not_shown(tmp_path, model, photos):
    import shutil

    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    running = start(str(make_index(tmp_path / "own.idx", model, own)))
    photo(99).save(own / "images" / "03.png")

    with pytest.raises(ServerError, match="changed") as refused:
        SearchClient(running.url).thumbnail("shelf/03")

    assert refused.value.status == 404
    running.stop()


def test_rows_that_are_indexed_meanwhile_are_found(tmp_path, model, photos):
    path = make_index(tmp_path / "grows.idx", model, photos)
    running = start(str(path))
    client = SearchClient(running.url)
    assert client.info()["rows"] == 12

    search = Search.open(path)
    vectors, codes = search.space.encode_document([photo(77)])
    search.index.add(["new"], vectors, codes=codes)

    hits = client.search(image=as_png(photo(77)), k=1)
    assert hits.ids == ["new"]
    assert client.info()["rows"] == 13
    running.stop()


def test_a_token_is_asked_for_everywhere_but_at_pages_without_data(index, tmp_path):
    (tmp_path / "token").write_text("secret-1\n")
    running = start(str(index), "--token-file", str(tmp_path / "token"))
    url = running.url
    good = {"Authorization": "Bearer secret-1"}

    for path in ("/", "/healthz", "/docs", "/openapi.json", "/static/search.js"):
        assert send(url, path)[0] == 200
    for path in ("/info", "/metrics", "/items/shelf/03/thumbnail"):
        assert send(url, path)[0] == 401
        assert send(url, path, headers={"Authorization": "Bearer secret-2"})[0] == 401
        assert send(url, path, headers=good)[0] == 200
    with pytest.raises(ServerError, match="token"):
        SearchClient(url).search("two dogs")
    assert len(SearchClient(url, token="secret-1").search("two dogs")) == 10
    running.stop()


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "evil.example"}, 421), ({"Sec-Fetch-Site": "cross-site"}, 403), ({}, 200)],
)
def test_other_sites_do_not_reach_it_through_a_browser(server, headers, status):
    assert send(server.url, "/search", {"text": "two dogs"}, headers)[0] == status


def test_what_was_done_is_counted(server, client):
    client.search("two dogs")

    _, headers, body = send(server.url, "/metrics")

    assert headers["Content-Type"].startswith("text/plain")
    assert b'fourm_requests_total{path="/search",status="200"}' in body
    assert b"fourm_index_rows 12.0" in body
    assert b"fourm_batch_queries_bucket" in body


def test_the_description_names_every_route(server):
    described = json.loads(send(server.url, "/openapi.json")[2])["paths"]

    assert set(described) == {
        "/search", "/embed", "/generate", "/items/{id}/thumbnail", "/info", "/healthz", "/metrics",
    }  # fmt: skip


def test_a_full_server_says_so_and_a_killed_one_starts_again(index):
    running = start(str(index), "--max-waiting", "1")
    client = SearchClient(running.url)

    def ask(_):
        try:
            return len(client.search("two dogs"))
        except ServerError as error:
            return error.status

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(ask, range(40)))
    running.stop(signal.SIGKILL)

    assert found <= {10, 503}
    assert 10 in found
    again = start(str(index))
    assert len(SearchClient(again.url).search("two dogs")) == 10
    assert again.stop() == 128 + signal.SIGTERM


def test_a_taken_port_is_told_before_the_model_is_loaded(server, index, capsys):
    from fourm_lite.cli import main

    port = server.url.rpartition(":")[2]
    with pytest.raises(SystemExit) as stopped:
        main(["serve", str(index), "--port", port])

    assert stopped.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_the_server_wrote_nothing_of_a_failure(server):
    assert not [line for line in server.log if "Traceback" in line]
