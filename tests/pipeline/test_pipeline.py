from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import photo, save_pipeline
from verbs import exit_code

from fourm_lite import FourMPipeline, Target
from fourm_lite.cli.generate import _told
from fourm_lite.errors import ConfigError, FourMError, ShapeError, UnknownNameError
from fourm_lite.modalities.values import Box, PointQuery, Segment
from fourm_lite.pipeline.embedding import dispersion
from fourm_lite.pipeline.outputs import Generated, Writer
from fourm_lite.tokenization.words.sequences import FORMATS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "model")


@pytest.fixture(scope="module")
def pipe(folder):
    return FourMPipeline.from_pretrained(folder)


def item(*names: str) -> dict:
    values = {
        "rgb": photo(),
        "semseg": np.random.default_rng(0).integers(0, 5, (32, 32)).astype(np.int64),
        "caption": "a red circle",
        "vector_global": np.random.default_rng(1).standard_normal(10).astype(np.float32),
        "color_palette": ((250, 10, 10), (10, 10, 250)),
        "tok_rgb@32": list(range(16)),
    }
    return {n: values[n] for n in names}


EVERY = ["rgb", "tok_rgb@32", "semseg", "caption", "vector_global", "color_palette"]


def test_every_target_is_generated_from_a_photo(pipe):
    targets = ["semseg", "tok_rgb@32", "vector_global", "caption", "color_palette"]

    out = pipe.generate(item("rgb"), targets, seed=1)

    assert list(out) == [
        "tok_semseg@32", "tok_rgb@32", "tok_vector_global", "caption", "color_palette",
    ]  # fmt: skip
    assert out["tok_semseg@32"].value.shape == (32, 32)
    assert set(np.unique(out["tok_semseg@32"].value)) <= set(range(5))
    assert out["tok_rgb@32"].value.shape == (3, 32, 32)
    assert out["tok_rgb@32"].picture.size == (32, 32)
    assert out["tok_vector_global"].value.shape == (10,)
    assert isinstance(out["caption"].text, str)
    assert all(0 <= c <= 255 for color in out["color_palette"].value for c in color)
    assert all(0 < g.confidence <= 1 for g in out.values())


FORMS = [
    "picture", "path", "bytes", "array", "text path", "array chw", "tensor", "tensor hwc",
]  # fmt: skip


@pytest.mark.parametrize("as_what", FORMS)
def test_a_photo_may_be_given_in_any_form(pipe, tmp_path, as_what):
    path = tmp_path / "photo.png"
    photo().save(path)
    array = np.array(photo())
    forms = {
        "picture": photo(), "path": path, "bytes": path.read_bytes(),
        "array": array, "text path": str(path), "array chw": array.transpose(2, 0, 1),
        "tensor": torch.from_numpy(array).permute(2, 0, 1), "tensor hwc": torch.from_numpy(array),
    }  # fmt: skip

    batch = pipe.read({"rgb": forms[as_what]})

    assert torch.equal(batch["rgb@32"].value, pipe.read({"rgb": photo()})["rgb@32"].value)


def test_an_open_photo_is_turned_upright(pipe, tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    photo().save(path, exif=exif)

    opened = pipe.read({"rgb": Image.open(path)})["rgb@32"].value

    assert torch.equal(opened, pipe.read({"rgb": path})["rgb@32"].value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 32, 32), np.uint8), r"1, 3 or 4 channels, got \[2, 32, 32\]"),
        (np.zeros((1, 3, 32, 32), np.uint8), "several as several items"),
        (torch.zeros(3, 0, 0, dtype=torch.uint8), "one picture"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), "convert it to uint8"),
        (np.zeros((32, 32, 3), np.int32), "convert it to uint8"),
    ],
)
def test_numbers_that_are_no_photo_are_refused(pipe, value, message):
    with pytest.raises(ShapeError, match=message):
        pipe.read({"rgb": value})


def test_tokens_may_be_given_instead_of_raw_values(pipe):
    ids = list(range(16))

    batch = pipe.read({"semseg": ids, "caption": np.array([300, 301])})

    assert batch["tok_semseg@32"].value.tolist() == [ids]
    assert batch["caption"].value.tolist() == [[300, 301]]


def test_a_raw_value_is_what_its_tokens_say(pipe):
    raw = item("semseg")["semseg"]
    tokenizer = pipe.tokenizers.vq(pipe.model.modality("tok_semseg@32"))

    ids = pipe.read({"semseg": raw})["tok_semseg@32"].value

    assert torch.equal(ids, tokenizer.tokenize_flat(torch.from_numpy(raw)[None]))


SUBSETS = [s for k in range(1, 7) for s in itertools.combinations(EVERY, k)]


def test_every_subset_of_modalities_has_a_unit_vector(pipe):
    items = [item(*names) for names in SUBSETS]

    together = pipe.embed(items, batch_size=16)
    alone = np.stack([pipe.embed(i) for i in items])

    assert len(pipe.model.config.inputs) == len(EVERY)
    assert together.shape == (2**6 - 1, 10)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def network(pictures):
    """A network over pictures, 10 wide as the tiny tokenizer is."""
    small = [np.asarray(p.convert("RGB").resize((4, 1)), np.float32).reshape(-1) for p in pictures]
    return np.stack(small)[:, :10] / 50


def test_a_teacher_gives_the_networks_own_unit_vectors(pipe, tmp_path):
    photos = [photo(i) for i in range(5)]
    photos[0].save(tmp_path / "0.png")
    told = []

    found = pipe.embed(
        [{"rgb": tmp_path / "0.png"}, *({"rgb": p} for p in photos[1:])],
        teacher=network, batch_size=2, progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip

    raw = network(photos)
    np.testing.assert_allclose(found, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert told == [(2, 5), (4, 5), (5, 5)]
    np.testing.assert_array_equal(pipe.embed({"rgb": photos[1]}, teacher=network), found[1])


def test_what_a_teacher_cannot_embed_is_refused(pipe):
    with pytest.raises(FourMError, match=r"item 1 holds \['caption', 'rgb'\]"):
        pipe.embed([item("rgb"), item("rgb", "caption")], teacher=network)
    with pytest.raises(ShapeError, match=r"width 7.*'tok_vector_global' is of width 10"):
        pipe.embed(item("rgb"), teacher=lambda ps: np.ones((len(ps), 7), np.float32))


@pytest.mark.parametrize("teacher", [None, lambda ps: np.ones((len(ps), 4), np.float32)])
def test_a_map_of_places_is_no_vector_to_search_by(pipe, teacher):
    with pytest.raises(ConfigError, match="'tok_semseg@32' is a map of 4 x 4 places"):
        pipe.embed(item("rgb"), target="semseg", teacher=teacher)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("decode", ["expected", "argmax", "sample"])
def test_every_way_of_decoding_gives_unit_vectors(pipe, decode, steps):
    items = [item("rgb"), item("caption")]

    one = pipe.embed(items, decode=decode, steps=steps, seed=3)
    again = pipe.embed(items[::-1], decode=decode, steps=steps, seed=3)[::-1]

    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(one, again, atol=1e-5)


def test_the_expected_embedding_is_the_mean_over_the_predicted_codes(pipe):
    entry = pipe.embedding_target()
    tokenizer = pipe.tokenizers.vq(entry)
    batch = pipe.read(item("rgb"))
    with torch.inference_mode():
        from fourm_lite.model.likelihood import grid_log_probs

        probs = grid_log_probs(pipe.model, entry.name, pipe.model.encode(batch).context, 1).exp()
        tables = [tokenizer.lookup(torch.full((1, 4), v))[0, :, 0, 0] for v in range(24)]
        codes = torch.stack(tables)  # [V, latent], each head's own part
        heads = codes.view(24, 4, 4)
        latent = torch.einsum("lv,vld->ld", probs[0], heads).flatten()
        value = tokenizer.decode(latent[None, :, None, None]).flatten()

    np.testing.assert_allclose(pipe.embed(item("rgb")), value / value.norm(), atol=1e-5)


def test_samples_differ_and_their_spread_is_theirs_alone(pipe):
    items = [item("rgb"), item("caption")]

    samples = pipe.embed_samples(items, 8, seed=3)
    alone = pipe.embed_samples(items[1], 8, seed=3)

    assert samples.shape == (2, 8, 10)
    np.testing.assert_allclose(np.linalg.norm(samples, axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(samples[1:], alone, atol=1e-5)
    assert (dispersion(samples) > 0.01).all()
    np.testing.assert_allclose(dispersion(samples[:, :1]), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("text_format", "value", "expected"),
    [
        ("color_palette", ((250, 10, 10), (10, 10, 250)), [[250, 10, 10], [10, 10, 250]]),
        ("metadata", {"original_height": 20.0}, {"original_height": 20.0}),
        (
            "boxes", (Box(0.25, 0.0, 0.5, 1.0, "dog"),),
            [{"xmin": 0.25, "ymin": 0.0, "xmax": 0.5, "ymax": 1.0, "name": "dog", "score": 1.0}],
        ),
        (
            "sam_instances", (PointQuery(3, 4, (Segment((0, 1, 2, 3), (5,) * 16),)),),
            [{"x": 3, "y": 4, "segments": [{"box": [0, 1, 2, 3], "tokens": [5] * 16}]}],
        ),
        ("text", "a dog", None),
    ],
)  # fmt: skip
def test_structured_values_are_json(text_format, value, expected):
    text = FORMATS[text_format].text(value)
    generated = Generated("x", np.zeros(1, np.int64), value, text, text)

    out = json.loads(json.dumps(generated.to_json()))

    assert out.get("value") == expected
    assert out["text"] == text


def test_a_caption_that_was_stopped_before_its_end_says_so(pipe):
    entry = pipe.model.modality("caption")
    words = pipe.tokenizers.text(entry)
    ids = words.encode("a red circle")

    cut = Writer(pipe.tokenizers).write(entry, torch.tensor(ids), 0.5)
    whole = Writer(pipe.tokenizers).write(entry, torch.tensor([*ids, words.eos]), 0.5)

    assert (cut.text, whole.text) == ("a red circle …", "a red circle")
    assert cut.to_json()["text"] == cut.text


def test_candidates_are_scored_for_every_item(pipe):
    given = [item("rgb"), item("vector_global")]
    captions = ["a red circle", "two green dogs", "a blue square on the left"]

    scores = pipe.score({"caption": captions}, given)

    assert scores.shape == (2, 3)
    assert (scores < 0).all()
    one = pipe.score({"caption": captions[1]}, given[0])
    np.testing.assert_allclose(one, scores[:1, 1:2], atol=1e-5)


def test_results_do_not_depend_on_the_batch(pipe):
    items = [item("rgb"), item("caption"), item("rgb", "caption")]

    together = pipe.generate(items, ["semseg", "color_palette"], seed=7)
    alone = [pipe.generate(i, ["semseg", "color_palette"], seed=7) for i in items]

    for a, b in zip(together, alone, strict=True):
        for name in a:
            assert a[name].tokens.tolist() == b[name].tokens.tolist()


def test_copies_of_an_item_count_for_it_alone(pipe):
    items = [item("rgb"), item("vector_global"), item("rgb", "caption")]
    dense = Target("caption", temperature=1.0, copies=3)

    together = pipe.generate(items, [dense], seed=5)
    alone = [pipe.generate(i, [dense], seed=5)["caption"] for i in items]

    for found, single in zip(together, alone, strict=True):
        assert found["caption"].tokens.tolist() == single.tokens.tolist()
        assert found["caption"].confidence == pytest.approx(single.confidence, nan_ok=True)
        assert (single.tokens == pipe.marks.eos).sum() == 1
        assert single.tokens[-1] == pipe.marks.eos


@pytest.mark.parametrize("target", ["caption", "tok_rgb@32"])
def test_what_is_given_has_no_confidence(pipe, target):
    items = [item("rgb", target), item("rgb")]

    given, made = pipe.generate(items, [target])
    alone = pipe.generate(items[0], [target])

    assert given[target].confidence is None
    assert alone[target].confidence is None
    assert 0 < made[target].confidence <= 1
    json.dumps([g[target].to_json() for g in (given, made, alone)], allow_nan=False)


@pytest.mark.parametrize("target", ["caption", "tok_rgb@32"])
def test_a_target_that_one_item_gives_is_generated_for_the_others(pipe, target):
    items = [item("rgb", target), item("rgb")]

    given, made = pipe.generate(items, [target], seed=2)
    alone = pipe.generate(items[1], [target], seed=2)

    assert made[target].tokens.tolist() == alone[target].tokens.tolist()
    assert given[target].tokens.tolist() == pipe.read(items[0])[target].value[0].tolist()


@pytest.mark.parametrize(
    ("given", "targets", "error", "message"),
    [
        ({}, ["caption"], FourMError, "nothing is given"),
        ({"rgbb": 1}, ["caption"], UnknownNameError, "Did you mean 'rgb@32'"),
        ({"caption": "a"}, ["tok_dept"], UnknownNameError, "no target"),
        ({"caption": "a"}, [], FourMError, "at least one target"),
        ({"rgb": "/no/such/file.jpg"}, ["caption"], FourMError, "cannot read"),
        ({"rgb": 7}, ["caption"], FourMError, "expects a path, bytes, a PIL picture"),
        ({"caption": "a " * 40}, ["semseg"], FourMError, "may hold 24 tokens"),
        ({"caption": {"a": 1}}, ["semseg"], FourMError, "text"),
        ({"semseg": [1, 2, 3]}, ["caption"], FourMError, "16 tokens a sample"),
        ({"semseg": [99] * 16}, ["caption"], FourMError, "ids 0..15"),
        ({"vector_global": np.zeros(3, np.float32)}, ["caption"], FourMError, "10"),
    ],
)
def test_a_request_that_cannot_be_met_is_named(pipe, given, targets, error, message):
    with pytest.raises(error, match=message):
        pipe.generate(given, targets)


@pytest.mark.parametrize("inputs", ["a.jpg", ["a.jpg"], Path("a.jpg"), 3, [{"caption": "a"}, 3]])
def test_an_item_that_cannot_be_meant_is_refused(pipe, inputs):
    for verb in (pipe.read, pipe.embed):
        with pytest.raises(FourMError, match=r"there is no photo at|an item is a sentence|a\.jpg"):
            verb(inputs)


def test_items_may_be_written_as_people_say_them(pipe, tmp_path):
    photo().save(tmp_path / "a.png")
    path, words = str(tmp_path / "a.png"), "a red dog"
    plain = [{"caption": words}, {"rgb": path}, {"caption": words, "rgb": path}]
    said = [words, path, {"text": words, "image": path}]

    for one, other in zip(plain, said, strict=True):
        np.testing.assert_array_equal(pipe.embed(one), pipe.embed(other))
    np.testing.assert_array_equal(pipe.embed(plain), pipe.embed(said))
    np.testing.assert_array_equal(pipe.embed({"rgb": photo()}), pipe.embed(photo()))
    with pytest.raises(FourMError, match="'caption' twice"):
        pipe.embed({"text": words, "caption": words})


@pytest.mark.parametrize("seed", [np.int64(3), [np.int64(3)], np.array([3])])
def test_a_seed_may_be_a_number_of_numpy(pipe, seed):
    given, sampled = [item("caption")], Target("tok_rgb@32", temperature=1.0)

    out = pipe.generate(given, [sampled], seed=seed)[0]["tok_rgb@32"].tokens

    assert out.tolist() == pipe.generate(given, [sampled], seed=3)[0]["tok_rgb@32"].tokens.tolist()
    for embed in (pipe.embed, lambda items, seed: pipe.embed_samples(items, 2, seed=seed)):
        np.testing.assert_array_equal(embed(given, seed=seed), embed(given, seed=3))


@pytest.mark.parametrize(("seed", "message"), [(1.5, "whole number"), ([1, 2], "one for each")])
def test_a_seed_that_is_none_is_refused(pipe, seed, message):
    with pytest.raises(FourMError, match=message):
        pipe.embed([item("caption")], seed=seed)


def test_a_missing_tokenizer_is_named(folder):
    from fourm_lite.model.load import load_model

    pipe = FourMPipeline.from_pretrained(load_model(folder))

    with pytest.raises(FourMError, match="needs the tokenizer 'semseg'"):
        pipe.read({"semseg": item("semseg")["semseg"]})
    with pytest.raises(FourMError, match="text tokenizer"):
        pipe.read({"caption": "a dog"})
    out = pipe.generate({"rgb": photo()}, ["semseg"])["tok_semseg@32"]
    assert out.value is None
    assert out.tokens.shape == (16,)


def test_a_tokenizer_of_another_model_is_refused(folder):
    pipe = FourMPipeline.from_pretrained(folder, {"semseg": folder / "tokenizers" / "rgb"})

    with pytest.raises(FourMError, match="belongs to another model"):
        pipe.generate(item("rgb"), ["semseg"])


def test_tokenizers_may_be_a_folder(folder):
    pipe = FourMPipeline.from_pretrained(folder, folder / "tokenizers")

    assert pipe.tokenizers.has(pipe.model.modality("tok_rgb@32"))
    with pytest.raises(ConfigError, match="no folder"):
        FourMPipeline.from_pretrained(folder, folder / "nothing")


def test_a_plan_says_how(pipe):
    seen = []
    target = Target("tok_rgb@32", scheme="roar", steps=4)

    pipe.generate(item("rgb"), [target], on_step=lambda r, i, n: seen.append((r.step.scheme, i, n)))

    assert seen == [("roar", i, 4) for i in range(1, 5)]


def test_the_command_writes_files_a_sheet_and_json(folder, tmp_path, capsys):
    photo().save(tmp_path / "photo.png")
    arguments = [
        "generate", "--model", folder, "--input", f"rgb={tmp_path / 'photo.png'}",
        "--target", "semseg", "--target", "caption", "--out", tmp_path / "out", "--json",
    ]  # fmt: skip

    code = exit_code(*arguments)
    result = json.loads(capsys.readouterr().out)

    assert code == 0
    assert set(result["outputs"]) == {"tok_semseg@32", "caption"}
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files == {"tok_semseg_32.png", "caption.txt", "sheet.png", "result.json"}
    legend = result["outputs"]["tok_semseg@32"]["legend"]
    assert all(set(key) == {"name", "value", "color"} for key in legend)
    assert _told(result["outputs"]) == {
        "caption": result["outputs"]["caption"]["text"],
        "tok_semseg@32": ", ".join(f"{key['name']} {key['value']}" for key in legend),
    }


def test_a_long_generation_goes_on_where_it_was(folder, tmp_path, capsys, monkeypatch):
    lines = [{"id": str(i), "caption": f"a red circle {i}"} for i in range(4)]
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["generate", "-m", folder, "--items", items, "-t", "semseg", "-o", tmp_path / "o"]
    real, calls = FourMPipeline.generate, []

    def stopping(self, inputs, *args, **kwargs):
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, inputs, *args, **kwargs)

    monkeypatch.setattr(FourMPipeline, "generate", stopping)
    exit_code(*arguments)
    code = exit_code(*arguments)

    assert code == 0
    assert len(calls) == 3 + 2  # two were finished before the stop
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["0", "1", "2", "3"]


def test_the_command_says_what_is_wrong(folder, capsys):
    code = exit_code("generate", "--model", folder, "--input", "rgb", "--target", "caption")

    assert code == 2
    assert "NAME=VALUE" in capsys.readouterr().err
