"""One published name opens all that belongs to it; what is missing is told before any work."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model
from tiny_hub import FOURM_21, MODELS, TOKENIZERS, model_files, without

from fourm_lite import FMViT, FourMPipeline, load_model
from fourm_lite.cli import main
from fourm_lite.demo.examples import draw
from fourm_lite.errors import ConfigError, FourMError, NotFetchedError, UnknownNameError
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.published import FOURM
from fourm_lite.modalities.value_codecs import SamCodec
from fourm_lite.modalities.values import Person, PointQuery, Segment
from fourm_lite.pipeline.inner_tokens import with_joints, with_masks
from fourm_lite.pipeline.outputs import Generated
from fourm_lite.sampling.passes import LEGACY_MARKS
from fourm_lite.search.index.manifest import read_manifest

MODEL = "EPFL-VILAB/4M-21_B"
GLOBAL = "EPFL-VILAB/4M_tokenizers_DINOv2-B14-global_8k_16_224"
DEPTH = "EPFL-VILAB/4M_tokenizers_depth_8k_224-448"


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw("red", "circle", "white", 0.5, size=224).save("photo.jpg")
    return "photo.jpg"


@pytest.fixture
def no_work(monkeypatch):
    """Fails where the model is asked for anything."""

    def worked(*args, **kwargs):
        pytest.fail("work was done before the error")

    monkeypatch.setattr("fourm_lite.model.fourm.FourM.encode", worked)


def run(line: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    return int(stopped.value.code or 0)


def use(monkeypatch, cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


# --- a name opens what belongs to it


def test_a_job_opens_only_the_tokenizers_that_it_reads_or_shows(published, photo, monkeypatch):
    opened = []
    from fourm_lite.pipeline import tokenizers as module

    load = module.load_tokenizer
    monkeypatch.setattr(module, "load_tokenizer", lambda s: (opened.append(s), load(s))[1])
    monkeypatch.setattr(module, "load_text_tokenizer", lambda s: pytest.fail("no text is read"))
    pipe = FourMPipeline.from_pretrained(MODEL)

    vector = pipe.embed({"rgb": photo})

    assert vector.shape == (768,)
    (only,) = opened
    assert GLOBAL.replace("/", "--") in str(only.source)


@pytest.mark.parametrize("form", ["folder", "single file", "saved again", "trained on"])
def test_copies_of_a_published_model_bring_its_tokenizers(form, published, tmp_path):
    config, weights = model_files("4M-21_B")
    place = tmp_path / "copy"
    place.mkdir()
    if form == "folder":
        save_file(weights, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps(config))
    elif form == "single file":
        place = place / "any_name.safetensors"
        save_file(weights, place, metadata={k: str(v) for k, v in config.items()})
    else:
        model = load_model(MODEL)
        model.save(place, extra={"steps": 5} if form == "trained on" else None)

    pipe = FourMPipeline.from_pretrained(place)

    assert pipe.embed({"caption": "a dog"}).shape == (768,)
    assert all(pipe.tokenizers.has(m) for m in pipe.model.config.outputs if m.kind == "grid")


def test_marks_of_the_published_text_tokenizer_are_known_without_its_file(published):
    pipe = FourMPipeline.from_pretrained(MODEL)

    assert pipe.tokenizers.text().marks == LEGACY_MARKS


def test_every_published_tokenizer_is_in_the_cache_of_these_tests():
    names = {t.source.removeprefix("EPFL-VILAB/4M_tokenizers_") for t in FOURM.tokenizers.values()}

    assert names == set(TOKENIZERS)
    assert set(MODELS) <= set(FOURM.models)


# --- other tokenizers


@pytest.mark.parametrize(
    "given",
    [
        "depth=" + DEPTH,
        ["depth=" + DEPTH, {"text": "4m"}],
        {"depth": DEPTH},
        ["FOLDER", "depth=" + DEPTH],
    ],
)
def test_tokenizers_are_pairs_folders_and_mixtures(given, published, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    other = published / f"models--{GLOBAL.replace('/', '--')}"
    (folder / "dinov2_global").symlink_to(next((other / "snapshots").iterdir()))
    if isinstance(given, list):
        given = [folder if g == "FOLDER" else g for g in given]

    pipe = FourMPipeline.from_pretrained(MODEL, given)

    assert pipe.tokenizers.source(pipe.model.modality("tok_depth@224")) == DEPTH
    has_folder = isinstance(given, list) and folder in given
    expected = folder / "dinov2_global" if has_folder else GLOBAL
    assert pipe.tokenizers.source(pipe.model.modality("tok_dinov2_global")) == expected


def test_what_the_user_names_counts_before_config_and_family(published, tmp_path):
    model = load_model(MODEL)
    model.save(tmp_path / "own", extra={"tokenizers": {"tok_depth": "EPFL-VILAB/config"}})
    depth = model.modality("tok_depth@224")

    by_config = FourMPipeline.from_pretrained(tmp_path / "own")
    by_user = FourMPipeline.from_pretrained(tmp_path / "own", "depth=EPFL-VILAB/user")

    assert by_config.tokenizers.source(depth) == "EPFL-VILAB/config"
    assert by_user.tokenizers.source(depth) == "EPFL-VILAB/user"


def test_a_folder_may_keep_the_names_of_the_hub(published, tmp_path):
    name = DEPTH.rpartition("/")[2]
    cached = published / f"models--{DEPTH.replace('/', '--')}" / "snapshots"
    (tmp_path / name).symlink_to(next(cached.iterdir()))

    pipe = FourMPipeline.from_pretrained(MODEL, tmp_path)

    assert pipe.tokenizers.source(pipe.model.modality("tok_depth@224")) == tmp_path / name


def test_a_word_that_names_no_tokenizer_is_told(published, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'depth'"):
        FourMPipeline.from_pretrained(MODEL, "dpeth=somewhere")
    with pytest.raises(ConfigError, match="NAME=SOURCE"):
        FourMPipeline.from_pretrained(MODEL, "nowhere/here/at/all")
    with pytest.raises(ConfigError, match="holds no folders of tokenizers"):
        FourMPipeline.from_pretrained(MODEL, tmp_path)


def test_an_index_remembers_the_tokenizers_that_it_was_made_with(published, photo, tmp_path):
    words = f"--model {MODEL} --tokenizers dinov2_global={GLOBAL} --tokenizers text=4m"

    assert run(f"index photo.jpg -o IDX {words}") == 0
    assert run("search IDX --caption 'a dog'") == 0

    extra = read_manifest("IDX").extra
    assert extra["tokenizers"] == [f"dinov2_global={GLOBAL}", "text=4m"]


# --- what is missing


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (MODEL, f"generate --model {MODEL} --input rgb=photo.jpg --target caption"),
        (MODEL, f"index photo.jpg -o IDX --model {MODEL}"),
        (DEPTH, f"generate --model {MODEL} --input rgb=photo.jpg --target caption --target depth"),
        (GLOBAL, f"index photo.jpg -o IDX --model {MODEL}"),
    ],
)
def test_what_is_not_in_the_cache_is_told_with_its_command_before_any_work(
    missing, line, published, photo, no_work, monkeypatch, tmp_path, capsys
):
    use(monkeypatch, without(published, missing, tmp_path / "cache"))

    assert run(line) == 2

    assert f"fourm-lite download {missing}" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["caption", "det", "sam_instance"])
def test_a_missing_text_file_is_told_with_its_command_before_any_work(
    target, published, photo, no_work, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "empty"))

    assert run(f"generate --model {MODEL} --input rgb=photo.jpg --target {target}") == 2

    assert "`fourm-lite download 4m`" in capsys.readouterr().err


def test_all_that_is_missing_is_told_at_once(published, photo, monkeypatch, tmp_path):
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "empty"))
    use(monkeypatch, without(published, DEPTH, tmp_path / "cache"))
    pipe = FourMPipeline.from_pretrained(MODEL)

    with pytest.raises(NotFetchedError, match=f"fourm-lite download {DEPTH} 4m") as told:
        pipe.generate({"rgb": photo}, ["depth", "caption"])

    assert f"fourm-lite download {MODEL}" in str(told.value)


def test_embedding_words_without_the_text_file_does_no_work(
    published, photo, no_work, monkeypatch, tmp_path
):
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "empty"))
    pipe = FourMPipeline.from_pretrained(MODEL)

    with pytest.raises(NotFetchedError, match="fourm-lite download 4m"):
        pipe.embed([{"rgb": photo}] * 40 + [{"caption": "a dog"}])


def test_a_half_fetched_repository_counts_as_missing(published, monkeypatch, tmp_path):
    cache = without(published, DEPTH, tmp_path / "cache")
    snapshot = cache / f"models--{DEPTH.replace('/', '--')}" / "snapshots" / "a"
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/nothing")
    use(monkeypatch, cache)
    pipe = FourMPipeline.from_pretrained(MODEL)

    with pytest.raises(NotFetchedError, match=f"fourm-lite download {DEPTH}"):
        pipe.tokenizers.vq(pipe.model.modality("tok_depth@224"))


# --- download


@pytest.mark.parametrize(("purpose", "count"), [("embed", 4), ("generate", 14), ("all", 14)])
def test_download_tells_parts_sizes_and_licences(purpose, count, published, capsys):
    assert run(f"download {MODEL} --for {purpose} --json") == 0

    out = json.loads(capsys.readouterr().out)
    assert len(out["parts"]) == count
    assert out["bytes"] == sum(part["bytes"] for part in out["parts"]) > 0
    assert all(part["licence"] for part in out["parts"])
    assert run(f"download {MODEL} --for {purpose}") == 0
    shown = capsys.readouterr().out
    assert "licence sample-code-license: model, " in shown
    assert "licence Apache-2.0: text" in shown


def test_download_without_a_network_names_every_part_that_is_missing(
    published, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "empty"))
    use(monkeypatch, without(published, GLOBAL, tmp_path / "cache"))

    assert run(f"download {MODEL} --for embed") == 2

    assert f"`fourm-lite download {GLOBAL} 4m`" in capsys.readouterr().err


def test_download_takes_single_parts_and_refuses_other_purposes(published, capsys):
    assert run(f"download {DEPTH} 4m") == 0
    assert run(f"download {MODEL} --for embde") == 2
    assert "Did you mean 'embed'" in capsys.readouterr().err


# --- values


def test_a_tokenizer_of_another_vocabulary_is_told_before_any_work(published, photo, monkeypatch):
    pipe = FourMPipeline.from_pretrained(MODEL, "depth=EPFL-VILAB/4M_tokenizers_semseg_4k_224-448")
    monkeypatch.setattr(
        "fourm_lite.model.fourm.FourM.encode", lambda *a, **k: pytest.fail("work was done")
    )

    with pytest.raises(FourMError, match="belongs to another model"):
        pipe.generate({"rgb": photo}, ["depth"])


def test_a_map_and_a_vector_do_not_take_each_others_tokenizer(published, photo, no_work):
    pipe = FourMPipeline.from_pretrained(MODEL, [f"depth={GLOBAL}", f"dinov2_global={DEPTH}"])

    with pytest.raises(FourMError, match=r"'tok_depth@224' is a map .* gives 16 for each place"):
        pipe.generate({"rgb": photo}, ["depth"])
    with pytest.raises(FourMError, match=r"'tok_dinov2_global' is a vector .* gives 1 for each"):
        pipe.embed({"rgb": photo})


def test_targets_that_a_model_lacks_are_told_with_those_it_has(published, photo):
    pipe = FourMPipeline.from_pretrained("EPFL-VILAB/4M-7-T2I_B_CC12M")

    with pytest.raises(FourMError, match="tok_dinov2@224"):
        pipe.generate({"rgb@224": photo}, plan="rgb2all")


def test_rgb2all_makes_sixteen_targets_and_no_row_of_numbers(published, photo):
    assert run(f"generate --model {MODEL} --input rgb={photo} --plan rgb2all --out all") == 0

    outputs = json.loads(Path("all/result.json").read_text())["outputs"]
    assert len(outputs) == 16
    assert not [name for name, output in outputs.items() if "reason" in output]
    texts = [
        Path("all", o["file"]).read_text() for o in outputs.values() if o["file"][-4:] == ".txt"
    ]
    assert all(not text.replace(" ", "").isdigit() for text in texts)
    for name in ("tok_dinov2_global", "tok_clip@224"):
        assert np.load(Path("all", outputs[name]["array"])).shape[0] in (768, 512)
    assert len(outputs["tok_dinov2_global"]["value"]) == 768


def test_a_target_without_a_tokenizer_is_an_error_unless_tokens_are_asked_for(
    published, photo, tmp_path, capsys
):
    model = load_model(MODEL, inputs=["rgb@224"], outputs=["tok_depth@224", "caption"])
    model.family = None
    model.save(tmp_path / "own")
    line = (
        f"generate --model {tmp_path / 'own'} --input rgb={photo} --target depth --target caption"
    )

    assert run(f"{line} --out made") == 2
    assert "--tokens" in capsys.readouterr().err
    output = json.loads(Path("made/result.json").read_text())["outputs"]["tok_depth@224"]
    assert output["value"] is None
    assert "--tokenizers depth=SOURCE" in output["reason"]
    assert len(output["tokens"]) == 196

    assert run(f"{line} --out made --tokens") == 0
    assert "token numbers only" in capsys.readouterr().out


def test_tokens_may_be_asked_for_where_a_tokenizer_is_not_here(
    published, photo, monkeypatch, tmp_path
):
    use(monkeypatch, without(published, DEPTH, tmp_path / "cache"))

    line = f"generate --model {MODEL} --input rgb={photo} --target depth --out made --tokens"

    assert run(line) == 0
    output = json.loads(Path("made/result.json").read_text())["outputs"]["tok_depth@224"]
    assert f"fourm-lite download {DEPTH}" in output["reason"]


def test_masks_and_joints_are_decoded_beside_their_tokens(published):
    pipe = FourMPipeline.from_pretrained(MODEL)
    sam = pipe.tokenizers.vq(pipe.model.modality("sam_instance"))
    poses = pipe.tokenizers.vq(pipe.model.modality("human_poses"))
    segment = Segment((10, 20, 90, 100), tuple(range(16)))

    (query,) = with_masks([PointQuery(3, 4, (segment, segment))], sam)
    with_pose, without_pose = with_joints([Person(pose=tuple(range(8))), Person()], poses)

    assert query.segments[0].mask.shape == (64, 64)
    assert query.segments[0].mask.dtype == bool
    assert np.array(with_pose.joints).shape == (23, 9)
    assert without_pose.joints is None


@pytest.mark.parametrize(
    ("model", "given", "plan", "size"),
    [
        ("4M-7-T2I_B_CC12M", {"caption": "a red bus"}, "caption2clip2rgb", 224),
        ("4M-7-SR_L_CC12M", {"rgb@224": "photo.jpg"}, "superres448", 448),
    ],
)
def test_published_plans_end_in_pictures(model, given, plan, size, published, photo):
    pipe = FourMPipeline.from_pretrained(f"EPFL-VILAB/{model}")

    made = pipe.generate(given, plan=plan)

    assert made[f"tok_rgb@{size}"].picture.size == (size, size)
    assert made[f"tok_clip@{size}"].value.shape == (512, size // 16, size // 16)


@pytest.mark.parametrize(
    ("plan", "given"),
    [
        ("image2dinov2_global", {"rgb": "photo.jpg"}),
        ("caption2dinov2_global", {"caption": "a red bus"}),
        ("caption2imagebind_global", {"caption": "a red bus"}),
        pytest.param("sam_dense", {"rgb": "photo.jpg"}, marks=pytest.mark.slow),  # 8 long texts
    ],
)
def test_every_other_plan_gives_values(plan, given, published, photo):
    made = FourMPipeline.from_pretrained(MODEL).generate(given, plan=plan)

    assert made
    assert all(result.reason is None and result.value is not None for result in made.values())


def test_masks_are_json_as_run_lengths_and_drawn():
    mask = np.zeros((4, 3), bool)
    mask[1:3, 1] = True
    value = (PointQuery(3, 4, (Segment((10, 20, 90, 100), (5,) * 16, mask),)),)
    plain = (PointQuery(3, 4, (Segment((10, 20, 90, 100), (5,) * 16),)),)

    out = Generated("sam_instance", np.zeros(1, np.int64), value, "", "").to_json()

    found = out["value"][0]["segments"][0]["mask"]
    assert found == {"size": [4, 3], "counts": [5, 2, 5]}
    assert SamCodec().picture(value).tobytes() != SamCodec().picture(plain).tobytes()
    assert value == plain


def test_a_fork_with_modalities_of_its_own_gets_no_tokenizer_that_is_not_its(published, tmp_path):
    words = replace(MODALITIES["caption"], vocab_size=500)
    depth = replace(MODALITIES["tok_depth@224"], vocab_size=64)
    model = tiny_model(inputs=(MODALITIES["rgb@224"], words), outputs=(words, depth))
    model.family = "4m"
    model.save(tmp_path)
    pipe = FourMPipeline.from_pretrained(tmp_path)

    made = pipe.write(pipe.read({"caption": [3, 4, 5]}), ["caption"])[0]["caption"]

    assert not pipe.tokenizers.has(depth)
    assert made.value is None
    assert "text tokenizer" in made.reason


@pytest.mark.parametrize("name", [n for n in FOURM_21 if n.startswith("tok_")])
def test_decoded_values_of_every_grid_are_read_again(name, published):
    pipe = FourMPipeline.from_pretrained(MODEL)
    entry = pipe.model.modality(name)
    ids = torch.arange(entry.max_tokens) % entry.vocab_size
    batch = pipe.read({name: ids})

    (made,) = pipe.write(batch, [name])

    assert made[name].reason is None
    again = pipe.read({name: made[name].value if made[name].value.ndim != 3
                       or made[name].value.shape[0] > 3 else made[name].picture})  # fmt: skip
    assert again[name].value.shape == (1, entry.max_tokens)


# --- the ViT


def test_a_published_model_is_fine_tuned_and_opened_again(published, photo, tmp_path):
    for color in ("red", "blue"):
        (tmp_path / "FLOWERS" / color).mkdir(parents=True)
        for number in range(4):
            picture = draw(color, "circle", "white", 0.2 + 0.2 * number, size=64)
            picture.save(tmp_path / "FLOWERS" / color / f"{number}.png")

    assert run(f"finetune FLOWERS --model {MODEL} --mode lora --epochs 1 --out CLASSIFIER") == 0
    assert run(f"classify {photo} --model CLASSIFIER") == 0

    again = FMViT.from_pretrained("CLASSIFIER")
    assert again(torch.zeros(1, 3, 224, 224)).shape == (1, 2)
