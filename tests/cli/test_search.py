from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_networks import blip, save_network
from tiny_photos import write_list
from tiny_pipeline import photo, save_pipeline
from verbs import run

from fourm_lite.cli import main
from fourm_lite.search.index.index import Index


def answer(capsys, *words):
    code, out, err = run(capsys, *words)
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Twelve drawn photos with captions, a year, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pack")
    (folder / "images").mkdir()
    words = ("a red circle", "a blue square", "<b>two</b> dogs")
    rows = []
    for i in range(12):
        photo(i).save(folder / "images" / f"{i:02d}.png")
        split = "test" if i % 3 else "val"
        texts = [words[i % 3], f"{words[(i + 1) % 3]} on the left"]
        row = {"id": f"p{i:02d}", "file": f"images/{i:02d}.png", "captions": texts}
        rows.append(row | {"split": split, "year": 2015 + i})
    lines = [json.dumps(row) for row in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "images" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def indexed(tmp_path_factory, model, pack):
    path = tmp_path_factory.mktemp("idx") / "photos.idx"
    words = ["index", str(pack / "captions.jsonl"), "-o", str(path), "--model", str(model)]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--batch-size", "4", "--licence", "CC0"])
    assert stopped.value.code == 0
    return path


def test_nothing_to_index_leaves_no_index(capsys, tmp_path, model):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    words = ("index", tmp_path / "photos", "-o", tmp_path / "idx", "--model", model)

    assert run(capsys, *words)[0] == 2
    assert not (tmp_path / "idx").exists()

    photo(0).save(tmp_path / "photos" / "a.png")
    assert run(capsys, *words)[0] == 0
    (tmp_path / "photos" / "a.png").unlink()
    run(capsys, *words)
    assert len(Index.open(tmp_path / "idx")) == 1


def test_a_folder_becomes_an_index_and_a_second_run_embeds_nothing(capsys, tmp_path, model, pack):
    words = ("index", pack / "images", "-o", tmp_path / "idx", "--model", model, "--json")

    first, second = answer(capsys, *words), answer(capsys, *words)

    assert (first["rows"], first["added"], first["unchanged"]) == (12, 12, 0)
    assert (second["rows"], second["added"], second["unchanged"]) == (12, 0, 12)
    assert [os.path.basename(u["uri"]) for u in first["unreadable"]] == ["broken.jpg"]
    assert "none" in first["unreadable"][0]["reason"]


def test_unreadable_files_are_listed_for_people(capsys, tmp_path, model, pack):
    _, out, _ = run(capsys, "index", pack / "images", "-o", tmp_path / "i", "--model", model)

    assert "broken.jpg" in out
    assert "photos a second" in out


def test_words_and_a_picture_find_rows_as_json(capsys, indexed, pack):
    found = answer(
        capsys, "search", indexed, "--caption", "a red circle", "--image",
        pack / "images" / "03.png", "-k", 3, "--json",
    )  # fmt: skip

    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert found["compose"] == "arithmetic"
    assert found["space"] == "tok_vector_global"
    assert found["hits"][0]["captions"]
    assert found["p_right"] is None


def test_a_picture_finds_itself(capsys, indexed, pack):
    image = pack / "images" / "07.png"

    found = answer(capsys, "search", indexed, "--image", image, "-k", 1, "--json")

    assert found["hits"][0]["id"] == "p07"
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_what_is_like_a_row_is_found_without_a_model(capsys, indexed, tmp_path):
    found = answer(capsys, "search", indexed, "--like", "p07", "-k", 2, "--json")

    assert found["hits"][0]["id"] == "p07"
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-6)
    assert "p99" in run(capsys, "search", indexed, "--like", "p99")[2]
    assert "is a whole query" in run(capsys, "search", indexed, "a dog", "--like", "p07")[2]
    numbered = Index.create(tmp_path / "numbered", space="toy")
    numbered.add(range(3), np.eye(3))
    hits = answer(capsys, "search", tmp_path / "numbered", "--like", "1", "-k", 1, "--json")["hits"]
    assert hits[0]["id"] == 1


def test_weights_negatives_and_any_modality_compose_by_arithmetic(capsys, indexed, pack, tmp_path):
    np.save(tmp_path / "v.npy", np.linspace(-1, 1, 10, dtype=np.float32))

    found = answer(
        capsys, "search", indexed, "--caption", "two dogs", "--weight", "caption=2",
        "--not-caption", "a blue square", "--weight", "not-caption=0.3",
        "--given", f"vector_global={tmp_path / 'v.npy'}", "--json",
    )  # fmt: skip

    assert found["compose"] == "arithmetic"
    assert "not caption: a blue square x 0.3" in found["query"]
    assert len(found["hits"]) == 10


def test_where_and_rerank_narrow_and_reorder(capsys, indexed):
    words = ("search", indexed, "--caption", "two dogs", "--where", "year > 2020", "--json")

    plain = answer(capsys, *words)
    reranked = answer(capsys, *words, "--rerank", 4, "--rerank-weight", "codes=1")

    assert sorted(h["year"] for h in plain["hits"]) == list(range(2021, 2027))
    assert {h["id"] for h in plain["hits"]} == {h["id"] for h in reranked["hits"]}
    assert [h["id"] for h in plain["hits"][4:]] == [h["id"] for h in reranked["hits"][4:]]
    assert reranked["hits"][5]["score"] is None
    assert all("cosine" in h for h in reranked["hits"])


def test_a_cross_encoder_reranks_by_the_photos(capsys, indexed, tmp_path):
    cross = f"hf:{save_network(blip, tmp_path / 'blip')}"
    words = ("search", indexed, "--caption", "a red circle", "-k", 12, "--reranker", cross)

    found = answer(capsys, *words, "--rerank", 100, "--json")
    code, _, err = run(capsys, *words)
    np.save(tmp_path / "v.npy", np.eye(10, dtype=np.float32))
    refused, _, why = run(capsys, "search", tmp_path / "v.npy", *words[2:], "--rerank", 5)

    scores = [hit["score"] for hit in found["hits"]]
    assert found["reranker"] == cross
    assert scores == sorted(scores, reverse=True)
    assert all(0 < s < 1 for s in scores)
    assert len({hit["id"] for hit in found["hits"]}) == 12
    assert (code, refused) == (2, 2)
    assert "--rerank 100" in err
    assert "need an index" in why


def test_pages_and_sheets_show_the_hits_and_escape_their_words(capsys, indexed, tmp_path):
    html, sheet = tmp_path / "page.html", tmp_path / "sheet.png"

    code, out, _ = run(
        capsys, "search", indexed, "--caption", "a <script>", "-k", 12, "--html", html, "--sheet",
        sheet,
    )  # fmt: skip

    text = html.read_text(encoding="utf-8")
    assert code == 0
    assert "p00" in out
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "<b>two</b>" not in text
    assert text.count("data:image/jpeg") == 12
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("search", "nowhere", "--caption", "a"), "--html"),
        (("search", "nowhere", "--caption", "a"), "--sheet"),
        (("evaluate", "retrieval", "--data", "nowhere"), "--json"),
        (("evaluate", "zeroshot", "--data", "nowhere"), "--json"),
        (("evaluate", "knn", "--data", "nowhere", "--model", "nowhere"), "--json"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(capsys, tmp_path, words, option):
    (tmp_path / "file").write_text("mine")

    for place in (tmp_path, tmp_path / "file" / "page"):
        code, _, err = run(capsys, *words, option, place)

        assert code == 2
        assert err.startswith(f"error: {option}")
    assert (tmp_path / "file").read_text() == "mine"


def test_own_vectors_are_searched_and_left_alone(capsys, tmp_path, model):
    vectors = np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)
    path = tmp_path / "mine.npy"
    np.save(path, vectors)
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    found = answer(
        capsys, "search", path, "--model", model, "--caption", "a red circle", "-k", 3, "--json"
    )

    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert found["space"] == "tok_vector_global"
    assert len({hit["id"] for hit in found["hits"]}) == 3
    code, _, err = run(capsys, "search", path, "--model", model, "--caption", "a", "--where", "x")
    assert code == 2
    assert "need an index" in err


def test_an_index_called_like_a_file_of_vectors_is_searched_as_the_index_it_is(
    capsys, tmp_path, indexed
):
    for ending in ("index", "lance", "faiss"):
        shutil.copytree(indexed, tmp_path / f"photos.{ending}")

        found = answer(
            capsys, "search", tmp_path / f"photos.{ending}", "--caption", "two dogs", "--json"
        )

        assert found["rows"] == 12


def test_options_that_would_not_count_are_refused(capsys, tmp_path, indexed, model):
    np.save(tmp_path / "v.npy", np.eye(10, dtype=np.float32))
    own = ("search", tmp_path / "v.npy", "--model", model, "--caption", "a")
    ask = ("search", indexed, "--caption", "a")

    for words, said in [
        ((*ask, "--rerank-weight", "codes=1"), "--rerank 100"),
        ((*ask, "--rerank-given", "codes"), "--rerank 100"),
        ((*own, "--rerank-weight", "codes=1"), "need an index"),
        ((*own, "--rerank-given", "codes"), "need an index"),
        ((*ask, "--key", "vectors"), "--key and --ids"),
        ((*ask, "--ids", "ids.txt"), "--key and --ids"),
    ]:
        code, _, err = run(capsys, *words)

        assert code == 2
        assert said in err


def test_info_tells_who_made_an_index(capsys, indexed, model):
    facts = answer(capsys, "index-info", indexed, "--json")
    _, out, _ = run(capsys, "index-info", indexed)

    assert facts["rows"] == 12
    assert facts["manifest"]["licence"] == "CC0"
    assert facts["manifest"]["model"] == str(model.resolve())
    assert "tok_vector_global" in out
    assert str(model.resolve()) in out
    assert facts["manifest"]["fingerprints"]["tokenizer"] in out


def test_compacting_keeps_the_rows(capsys, indexed):
    assert answer(capsys, "index-compact", indexed, "--keep-hours", 0, "--json")["rows"] == 12


def test_checking_without_an_approximate_index_says_what_to_do(capsys, indexed):
    code, _, err = run(capsys, "index-check", indexed)

    assert code == 2
    assert "build_ann" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing is asked for"),
        (("--image", "nothing.jpg"), "expects a file"),
        (("--caption", "a", "--weight", "caption"), "NAME=VALUE"),
        (("--caption", "a", "--weight", "caption=much"), "expects a number"),
        (("--caption", "a", "--compose", "addition"), "compose is one of"),
        (("--given", "smell=rose"), "has no input 'smell'"),
        (("--caption", "a", "--where", "no such thing"), "filter"),
        (("--caption", "a", "--model", "nowhere"), "nowhere"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_one_message(capsys, indexed, words, said):
    code, out, err = run(capsys, "search", indexed, *words)

    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_a_query_of_another_space_is_refused_with_both_named(capsys, tmp_path, model):
    index = Index.create(tmp_path / "idx", space="tok_dinov2_global", width=10)
    index.add(["a"], np.ones((1, 10)))

    code, _, err = run(capsys, "search", tmp_path / "idx", "--caption", "a", "--model", model)

    assert code == 2
    assert "'tok_dinov2_global'" in err
    assert "'tok_vector_global'" in err


def test_retrieval_is_measured_under_the_fixed_names(capsys, tmp_path, model, pack):
    out = tmp_path / "out.json"

    code, shown, err = run(
        capsys, "evaluate", "retrieval", "--model", model, "--data", pack, "--split", "test",
        "--rerank", 3, "--decode", "expected", "--json", out,
    )  # fmt: skip

    assert code == 0, err
    report = json.loads(out.read_text(encoding="utf-8"))
    for direction in ("text_to_image", "image_to_text"):
        assert {"R@1", "R@5", "R@10", "median_rank"} <= set(report[direction])
    assert report["protocol"]["split"] == "test"
    assert report["protocol"]["photos"] == 8
    assert report["protocol"]["rerank_depth"] == 3
    assert "before: text to image" in " ".join(shown.split())


def test_depths_are_measured_and_plotted(capsys, tmp_path, model, pack):
    words = ("evaluate", "retrieval", "--model", model, "--data", pack, "--split", "test")

    code, shown, err = run(
        capsys, *words, "--rerank-depths", "0,2,4", "--rerank-given", "codes", "--plot",
        tmp_path / "p.png", "--json", tmp_path / "o.json",
    )  # fmt: skip

    assert code == 0, err
    report = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert [point["depth"] for point in report["by_depth"]] == [0, 2, 4]
    assert (report["protocol"]["rerank_depth"], report["protocol"]["rerank_given"]) == (4, "codes")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "depth 2: image to text" in " ".join(shown.split())
    code, _, err = run(capsys, *words, "--plot", tmp_path / "q.png")
    assert code == 2
    assert "--rerank-depths" in err


def test_photos_of_one_class_are_measured(capsys, tmp_path, model):
    folder = write_list(tmp_path / "labelled", train=0, val=0, test=3)
    words = ("evaluate", "same-class", "--model", model, "--data", folder)

    code, shown, err = run(capsys, *words, "--json", tmp_path / "o.json")

    assert code == 0, err
    report = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    low, high = report["interval"]["mAP"]
    assert 0 < low <= report["mAP"] <= high <= 1
    assert report["protocol"]["images"] == 9
    assert "9 of 3 classes" in shown


def test_tools_of_an_index_are_words_behind_index_too(capsys, tmp_path, indexed, model, pack):
    info = answer(capsys, "index", "info", indexed, "--json")
    assert info == answer(capsys, "index-info", indexed, "--json")
    code, _, err = run(capsys, "index", "check", indexed)
    assert code == 2
    assert "no approximate index" in err

    # a folder of that name is indexed all the same
    shutil.copytree(pack / "images", tmp_path / "check")
    with contextlib.chdir(tmp_path):
        made = answer(capsys, "index", "check", "-o", "idx", "--model", model, "--json")
    assert made["rows"] > 0


def test_steps_are_measured_and_plotted(capsys, tmp_path, model, pack):
    code, _, err = run(
        capsys, "evaluate", "steps", "--model", model, "--data", pack, "--split", "test", "--steps",
        "1,2", "--decode", "argmax,expected", "--plot", tmp_path / "p.png", "--json",
        tmp_path / "o.json",
    )  # fmt: skip

    assert code == 0, err
    points = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["points"]
    assert len(points) == 4
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_calibration_answers_with_a_probability_or_says_that_all_are_wrong(
    capsys, tmp_path, model, pack
):
    run(capsys, "index", pack / "images", "-o", tmp_path / "idx", "--model", model)

    code, out, err = run(
        capsys, "index", "calibrate", tmp_path / "idx", "--data", pack, "--split", "test",
        "--rerank", 3, "--samples", 4, "--json",
    )  # fmt: skip

    if code:  # a random model may have no right answer at all
        assert "right and wrong answers" in err
    else:
        found = json.loads(out)
        assert 0 <= found["share_right"] <= 1
        assert 0 <= found["reranked_share_right"] <= 1


KILLED = """
import sys, time
from fourm_lite.search import spaces
slow = spaces.ModelSpace.encode_document
def embed(self, pictures, **more):
    time.sleep(0.15)
    return slow(self, pictures, **more)
spaces.ModelSpace.encode_document = embed
from fourm_lite.cli import main
main(sys.argv[1:])
"""


def test_a_killed_run_is_continued_to_the_very_same_index(capsys, tmp_path, model):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(24):
        photo(i).save(photos / f"{i:02d}.png")
    options = ("--model", model, "--batch-size", 3, "--commit-rows", 3, "--json")
    words = [str(w) for w in ("index", photos, "-o", tmp_path / "killed", *options)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: more would round differently
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=one_thread,
    )  # fmt: skip
    wait_for_rows(tmp_path / "killed", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()

    before = len(Index.open(tmp_path / "killed"))
    report = answer(capsys, *words)
    answer(capsys, "index", photos, "-o", tmp_path / "whole", *options)

    assert 0 < before < 24
    assert (report["rows"], report["unchanged"]) == (24, before)
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


def wait_for_rows(path, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.stderr.read().decode()
        if (path / "items.lance" / "_versions").is_dir() and len(Index.open(path)) >= 3:
            return
        time.sleep(0.05)
    pytest.fail("the run committed nothing")


def rows_of(path):
    index = Index.open(path)
    ids = [i for batch in index.scan(["id"]) for i in batch.column(0).to_pylist()]
    assert len(ids) == len(set(ids))
    vectors, codes = index.vectors(ids), index.codes(ids)
    return {i: (v.tobytes(), c.tobytes()) for i, v, c in zip(ids, vectors, codes, strict=True)}
