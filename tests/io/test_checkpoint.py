import argparse
import json
import shlex

import pytest
import torch
from safetensors.torch import save_file

from fourm_lite.cli import main
from fourm_lite.errors import CheckpointError
from fourm_lite.io.checkpoint import read, write
from fourm_lite.io.hub import shipped
from fourm_lite.io.layout import licence_at

WEIGHTS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.count": torch.tensor([1, 2]),
    "b.weight": torch.randn(5, generator=torch.Generator().manual_seed(0)).half(),
}


@pytest.fixture
def hub_folder(tmp_path):
    """What `save_pretrained` writes: safetensors' own writer, a config beside it."""
    (tmp_path / "config.json").write_text(json.dumps({"dim": 8}))
    save_file(WEIGHTS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_hub_folder_is_read(hub_folder):
    checkpoint = read(hub_folder)

    assert checkpoint.config == {"dim": 8}
    assert checkpoint.source == hub_folder
    assert {n: i.shape for n, i in checkpoint.tensors.items()} == {
        n: tuple(v.shape) for n, v in WEIGHTS.items()
    }
    assert all(torch.equal(v, WEIGHTS[n]) for n, v in checkpoint.load().items())


def test_the_weights_file_of_a_folder_stands_for_the_folder(hub_folder):
    assert read(hub_folder / "model.safetensors").config == {"dim": 8}


def test_a_single_file_brings_its_own_config(hub_folder):
    single = hub_folder / "single.safetensors"
    save_file(WEIGHTS, single, metadata={"dim": "9", "names": "['rgb@224']"})

    assert read(single).config == {"dim": 9, "names": ["rgb@224"]}


def test_only_the_named_tensors_are_given_in_order(hub_folder):
    assert list(read(hub_folder).load(["b.weight", "a.count"])) == ["b.weight", "a.count"]


def test_floats_are_converted_and_integers_are_not(hub_folder):
    loaded = read(hub_folder).load(dtype=torch.float64)

    assert loaded["b.weight"].dtype == torch.float64
    assert loaded["a.count"].dtype == torch.int64


def test_an_alias_is_answered_with_the_tensor_that_was_kept(tmp_path):
    shared = {"dropped": "a.weight"}
    (tmp_path / "config.json").write_text("{}")
    save_file(WEIGHTS, tmp_path / "model.safetensors", metadata=shared)

    checkpoint = read(tmp_path)

    assert checkpoint.aliases == shared
    assert checkpoint.has("dropped")
    assert not checkpoint.has("other")
    assert torch.equal(checkpoint.load(["dropped"])["dropped"], WEIGHTS["a.weight"])


def test_changing_a_loaded_tensor_leaves_the_file_alone(hub_folder):
    checkpoint = read(hub_folder)

    checkpoint.load()["a.weight"].zero_()

    assert torch.equal(checkpoint.load()["a.weight"], WEIGHTS["a.weight"])


def test_an_unknown_tensor_is_told_with_the_nearest(hub_folder):
    with pytest.raises(CheckpointError, match=r"no tensor 'a\.wieght'.*'a\.weight'"):
        read(hub_folder).load(["a.wieght"])


def test_a_file_that_shrinks_after_reading_is_told(hub_folder):
    checkpoint = read(hub_folder)
    path = hub_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.load()


@pytest.mark.parametrize("text", ["[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 10_000])
def test_a_bad_config_is_told(hub_folder, text):
    (hub_folder / "config.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"config\.json"):
        read(hub_folder)


def test_weights_without_a_config_are_told(hub_folder):
    (hub_folder / "config.json").unlink()

    with pytest.raises(CheckpointError, match="no configuration"):
        read(hub_folder)


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: mit\n---\n# Title\nlicense: no", "mit"),
        ("---\nlicense: other\nlicense_name: sample-code-license\n---", "sample-code-license"),
        ("# Title\nlicense: no", None),
        ("", None),
    ],
)
def test_the_licence_comes_from_the_front_matter(hub_folder, readme, licence):
    (hub_folder / "README.md").write_text(readme)

    assert read(hub_folder).licence == licence


def test_the_licence_of_a_config_comes_first(tmp_path):
    write(tmp_path, {"extra": {"licence": "Apache-2.0"}}, WEIGHTS)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---")

    assert read(tmp_path).licence == "Apache-2.0"


# Shards


def sharded(folder, weight_map, **extra):
    (folder / "config.json").write_text("{}")
    index = {"weight_map": weight_map, **extra}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_read_as_one(tmp_path):
    names = {"a.weight": "x.safetensors", "a.count": "x.safetensors", "b.weight": "y.safetensors"}
    for shard in set(names.values()):
        save_file({n: WEIGHTS[n] for n in names if names[n] == shard}, tmp_path / shard)

    loaded = read(sharded(tmp_path, names)).load()

    assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)


OUTSIDE = [
    "../x.safetensors", "/tmp/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "..",
    "", "x.pth", 3, None, ["x.safetensors"], "x\x00.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("shard", OUTSIDE, ids=repr)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, shard):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(WEIGHTS, tmp_path / "x.safetensors")

    with pytest.raises(CheckpointError, match="of its own folder"):
        read(sharded(inside, {"a.weight": shard}))


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing: gone\.safetensors"):
        read(sharded(tmp_path, {"a.weight": "gone.safetensors"}))


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_table_is_told(tmp_path, weight_map):
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read(sharded(tmp_path, weight_map))


def test_an_index_that_disagrees_with_its_shards_is_told(tmp_path):
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    here = dict.fromkeys(WEIGHTS, "x.safetensors")

    with pytest.raises(CheckpointError, match=r"puts 'other' into x\.safetensors"):
        read(sharded(tmp_path, {**here, "other": "x.safetensors"}))
    with pytest.raises(CheckpointError, match=r"'b\.weight' of x\.safetensors is missing"):
        read(sharded(tmp_path, {name: here[name] for name in list(here)[:2]}))


# Pickles


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02")

    for source in (path, tmp_path):
        with pytest.raises(CheckpointError, match=r"fourm-lite convert .* -o OUT"):
            read(source)


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"holds a pickle.*fourm-lite convert .* -o OUT"):
        read(tmp_path)


def test_the_conversion_in_the_message_works(tmp_path, monkeypatch):
    path = tmp_path / "my checkpoint.pth"
    model = {"a.weight": WEIGHTS["a.weight"].t()}
    torch.save({"model": model, "epoch": 1, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    program, *words = shlex.split(str(caught.value).split("`")[1])
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as stopped:
        main(words)

    assert (program, stopped.value.code) == ("fourm-lite", 0)
    (tmp_path / "OUT" / "config.json").write_text("{}")
    assert torch.equal(read(tmp_path / "OUT").load()["a.weight"], WEIGHTS["a.weight"].t())


def test_axes_beside_a_model_are_never_taken_for_its_weights(hub_folder):
    save_file({"axes": torch.ones(2, 3)}, hub_folder / "spread.safetensors")
    (hub_folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read(hub_folder)


@pytest.mark.parametrize("name", ["mini", "rgb_mini", "joint_global"])
def test_cards_of_weights_that_ship_state_their_licence(name):
    licence = licence_at(shipped(name))

    assert licence is not None
    assert licence.startswith("non-commercial research")
