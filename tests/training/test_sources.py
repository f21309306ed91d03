"""Several sources in one recipe: photos with captions, photos alone, captions alone."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from tiny_shards import write_tokens
from tiny_spaces import save_photos, save_sentences
from tiny_training import losses, read_recipe
from verbs import exit_code

from fourm_lite.cli import main
from fourm_lite.data.labellers import MetadataLabeller
from fourm_lite.data.pseudolabel import LabelRun, pseudolabel
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError
from fourm_lite.photos.records import read_records
from fourm_lite.training.loop import fit
from fourm_lite.training.recipes import ModelRecipe
from fourm_lite.training.train import pretraining

RECIPE = """
text = "text_mini"
inputs = ["rgb@224", "caption", "metadata"]
outputs = ["caption", "metadata"]
[model]
dim = 16
num_heads = 2
encoder_depth = 1
decoder_depth = 1
[data]
captions = "{root}/captions.jsonl"
[sources.words]
captions = "{root}/words.txt.gz"
[sources.photos]
captions = "{root}/bare"
labels = "{root}/labels"
[train]
steps = 12
out = "{root}/run"
log_every = 1
[[components]]
name = "pairs"
inputs = {{ "rgb@224" = 1 }}
targets = {{ caption = 1 }}
input_budget = [4, 4]
target_budget = [8, 8]
batch_size = 2
[[components]]
name = "text"
source = "words"
inputs = {{ caption = 1 }}
targets = {{ caption = 1 }}
input_budget = [8, 8]
target_budget = [8, 8]
batch_size = 2
[[components]]
name = "numbers"
source = "photos"
inputs = {{ "rgb@224" = 1 }}
targets = {{ metadata = 1 }}
input_budget = [4, 4]
target_budget = [8, 8]
batch_size = 2
[[modalities]]
name = "rgb@224"
kind = "pixels"
channels = 3
image_size = 32
patch_size = 16
grid = [2, 2]
max_tokens = 4
directions = ["in"]
[[modalities]]
name = "caption"
kind = "sequence"
vocab_size = 5120
max_tokens = 16
[[modalities]]
name = "metadata"
kind = "sequence"
vocab_size = 5120
max_tokens = 16
"""


def paint(path, seed):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Two photos with captions, three without, and four captions without photos."""
    rows = []
    for i in range(2):
        paint(tmp_path / f"{i}.png", i)
        row = {"id": str(i), "file": f"{i}.png", "captions": ["a dog"], "split": "train"}
        rows.append(json.dumps(row) + "\n")
    (tmp_path / "captions.jsonl").write_text("".join(rows))
    for i in range(3):
        paint(tmp_path / "bare" / "sub" / f"x.{i}.png", 10 + i)
    lines = "a cat\n\ntwo men\n a red bus \nthe sea\n"
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress(lines.encode()))
    run = LabelRun(num_crops=2)
    pseudolabel(read_records(tmp_path / "bare"), [MetadataLabeller()], tmp_path / "labels", run=run)
    return tmp_path


def recipe_of(root, text=RECIPE):
    return read_recipe(root, text)


def test_a_model_learns_from_pairs_photos_alone_and_captions_alone(root):
    recipe = recipe_of(root)
    task, stream = pretraining(recipe)

    result = fit(task, stream, recipe.train)

    assert result.done
    assert {k: len(s) for k, s in stream.samples.items()} == {"train": 2, "words": 4, "photos": 3}
    made = {b.component: b for b in (stream.batch(s) for s in range(12))}
    assert set(made["text"].batch) == {"caption"}
    assert set(made["numbers"].batch) == {"rgb@224", "metadata"}
    assert int(made["text"].batch["caption"].targets.sum()) > 0


def test_passes_are_counted_over_the_largest_source(root):
    _, stream = pretraining(recipe_of(root))

    assert stream.epoch(6) == pytest.approx(6 * 2 / 3 / 4)


def test_a_recipe_changes_the_mixture_of_its_base(root):
    recipe_of(root)
    own = 'base = "recipe.toml"\n[changes]\ntext = { weight = 5, input_budget = [2, 4] }\n'
    added = """[[added]]
name = "more"
inputs = { caption = 1 }
targets = { caption = 1 }
input_budget = [3, 3]
target_budget = [5, 5]
batch_size = 2
"""
    (root / "own.toml").write_text(own + "numbers = { weight = 0 }\n" + added)

    recipe = ModelRecipe.read(root / "own.toml")
    _, stream = pretraining(recipe)

    assert [(c.name, c.weight, c.input_budget) for c in recipe.components] == [
        ("pairs", 1.0, (4, 4)),
        ("text", 5.0, (2, 4)),
        ("more", 1.0, (3, 3)),
    ]
    assert set(stream.samples) == {"train", "words"}  # what nothing reads is not opened


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("txt = { weight = 1 }", "got 'txt'.*'text'"),
        ("text = { wieght = 1 }", "no key 'changes.text.wieght'.*'weight'"),
        ("text = { batch_size = 0 }", "changes.text: .*batch_size >= 1"),
    ],
)
def test_a_change_of_nothing_known_is_refused(root, change, told):
    recipe_of(root)
    (root / "own.toml").write_text(f'base = "recipe.toml"\n[changes]\n{change}\n')

    with pytest.raises(ConfigError, match=told):
        ModelRecipe.read(root / "own.toml")


def test_a_source_that_lacks_a_modality_is_refused(root):
    wrong = RECIPE.replace("inputs = {{ caption = 1 }}", 'inputs = {{ "rgb@224" = 1 }}')

    with pytest.raises(ConfigError, match=r"'text' reads \['rgb@224'\] of the source 'words'"):
        pretraining(recipe_of(root, wrong))
    with pytest.raises(ConfigError, match="there is only"):
        pretraining(recipe_of(root, RECIPE.replace('source = "words"', 'source = "word"')))
    with pytest.raises(ConfigError, match="another name"):
        recipe_of(root, RECIPE.replace("[sources.words]", "[sources.train]"))


def test_tokens_and_labels_of_other_crops_are_refused(root):
    ids = [r.id for r in read_records(root / "bare")]
    write_tokens(root / "tokens", "crop_settings", ids, np.ones((3, 2, 5), dtype=np.int64))
    text = RECIPE.replace('labels = "{root}/labels"',
                          'labels = "{root}/labels"\ntokens = "{root}/tokens"')  # fmt: skip

    with pytest.raises(ConfigError, match="other crops"):
        pretraining(recipe_of(root, text))


def test_photos_and_labels_are_cut_at_one_place(root):
    _, stream = pretraining(recipe_of(root))
    photos = stream.samples["photos"]

    assert photos.num_crops == 2
    assert photos.settings[0, 0].tolist() == [0, 5, 30, 30, 0]


def test_records_of_every_form(root):
    assert [r.id for r in read_records(root, split="train")] == ["0", "1"]
    assert [r.id for r in read_records(root / "bare")] == [f"sub/x.{i}" for i in range(3)]
    words = read_records(root / "words.txt.gz")
    assert [r.captions for r in words] == [("a cat",), ("two men",), ("a red bus",), ("the sea",)]
    assert not words[0].has_photo
    with pytest.raises(FourMError, match="cannot read the picture"):
        words[0].open_image()


def test_sources_that_hold_nothing_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "list.jsonl").write_text("")
    paint(tmp_path / "twice" / "a.png", 0)
    paint(tmp_path / "twice" / "a.webp", 0)

    for place in ("empty", "empty.txt", "list.jsonl", "twice", "x.zip", "none.txt"):
        with pytest.raises(FourMError):
            read_records(tmp_path / place)
    with pytest.raises(UnknownNameError, match="no record is of the split 'val'"):
        read_records(root, split="val")


def test_token_files_keep_ids_with_dots(root):
    from fourm_lite.data.shards import read_tokens

    ids = ["sub/x.0", "50%2E", "a"]
    values = torch.arange(6).reshape(3, 1, 2).numpy()
    write_tokens(root / "dots", "map", ids, values)

    found, tokens = read_tokens(root / "dots", "map")

    assert found == ids
    assert np.array_equal(tokens, values)


def test_a_recipe_goes_on_from_a_trained_model_and_keeps_its_own_drop_path(root):
    first, _ = pretraining(recipe_of(root))
    first.model.save(root / "first")
    text = RECIPE.replace(
        "[data]", f'drop_path_rate_encoder = 0.5\n[start]\nmodel = "{root}/first"\n[data]'
    )

    second, _ = pretraining(recipe_of(root, text))

    assert second.model.config.drop_path_rate_encoder == 0.5
    own, theirs = second.model.state_dict(), first.model.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_a_model_of_another_size_is_no_start(root):
    first, _ = pretraining(recipe_of(root))
    first.model.save(root / "first")
    text = RECIPE.replace("dim = 16", "dim = 32").replace(
        "[data]", f'[start]\nmodel = "{root}/first"\n[data]'
    )

    with pytest.raises(ConfigError, match="copy its modalities and sizes"):
        pretraining(recipe_of(root, text))


def test_a_photo_that_could_not_be_labelled_is_left_out_of_training_and_told(root, caplog):
    (root / "bare" / "sub" / "x.1.png").write_bytes(b"no picture")
    labels = [MetadataLabeller()]
    pseudolabel(read_records(root / "bare"), labels, root / "labels", run=LabelRun(num_crops=2))

    _, stream = pretraining(recipe_of(root))

    assert len(stream.samples["photos"]) == 2
    assert "x.1" in caplog.text


def test_a_photo_that_was_never_labelled_is_asked_for(root):
    paint(root / "bare" / "sub" / "y.png", 5)

    with pytest.raises(FourMError, match=r"1 samples have no values, such as 'sub/y'"):
        pretraining(recipe_of(root))


def test_what_training_leaves_out_is_told_to_programs_too(root, capsys):
    with (root / "captions.jsonl").open("a") as file:
        file.write('{"file": "0.png", "id": "number", "captions": [7]}\n')
    (root / "bare" / "sub" / "x.1.png").write_bytes(b"no picture")
    labels = [MetadataLabeller()]
    pseudolabel(read_records(root / "bare"), labels, root / "labels", run=LabelRun(num_crops=2))
    recipe_of(root)

    with pytest.raises(SystemExit) as stopped:
        main(["train", str(root / "recipe.toml"), "--json"])

    assert not stopped.value.code
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert [one["uri"].rpartition("/")[2] for one in left_out] == ["0.png", "x.1"]


SPOKEN = """
text = "text_mini"
inputs = ["caption", "caption_vector"]
outputs = ["tok_joint_global"]
[[modalities]]
name = "caption_vector"
kind = "features"
channels = 32
max_tokens = 1
directions = ["in"]
raw = "caption"
tokenizer = "tiny_sentences"
[[modalities]]
name = "caption"
kind = "sequence"
vocab_size = 5120
max_tokens = 48
vocab = "text"
[[modalities]]
name = "tok_joint_global"
kind = "grid"
vocab_size = 1024
grid = [4, 4]
max_tokens = 16
pos_embed = "learned"
tokenizer = "joint_global"
[model]
dim = 16
num_heads = 2
encoder_depth = 1
decoder_depth = 1
[data]
captions = "{root}/captions.jsonl"
labels = "{root}/said"
tokens = "{root}/said_tokens"
texts = true
[train]
steps = 8
out = "{root}/spoken"
log_every = 1
[[components]]
name = "words"
inputs = {{ caption = 1, caption_vector = 1 }}
targets = {{ tok_joint_global = 1 }}
input_budget = [9, 9]
target_budget = [16, 16]
keep = {{ caption = "all", caption_vector = "all" }}
batch_size = 4
"""


def test_sentence_vectors_of_captions_are_learned_from(tmp_path):
    photos = tmp_path / "photos"
    rows = [json.loads(line) for line in save_photos(photos).read_text().splitlines()]
    spoken = [{**row, "file": str(photos / row["file"])} for row in rows]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, spoken)))
    folder, *_ = save_sentences(tmp_path / "sentences")

    assert not exit_code("pseudolabel", tmp_path / "captions.jsonl", "--split", "train",
        "--sentences", f"tiny_sentences=sentence:{folder}", "-o", tmp_path / "said")  # fmt: skip
    ids = [f"{row['id']}#{k}" for row in rows if row["split"] == "train" for k in range(2)]
    codes = np.random.default_rng(0).integers(0, 1024, (len(ids), 1, 16))
    write_tokens(tmp_path / "said_tokens", "tok_joint_global", ids, codes)
    write_tokens(tmp_path / "said_tokens", "crop_settings", ids, np.zeros((len(ids), 1, 5), int))
    recipe = read_recipe(tmp_path, SPOKEN)
    _, stream = pretraining(recipe)
    batch = stream.batch(0)
    assert not exit_code("train", tmp_path / "recipe.toml")

    texts = sorted({c for row in rows for c in row["captions"]})
    said = load_embedder(f"sentence:{folder}").embed_text(texts)
    vectors = batch.batch["caption_vector"]
    given = vectors.inputs[:, 0]  # a budget may leave it out
    near = vectors.value[given, 0].numpy() @ said.T
    assert given.any()
    assert np.allclose(near.max(axis=1), 1, atol=1e-4)  # each is that of one of the captions
    assert np.isfinite(losses(tmp_path / "spoken")).all()
