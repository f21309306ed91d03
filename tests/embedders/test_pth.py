"""What a training script's file holds: the network is taken, all else is told or refused."""

from __future__ import annotations

import collections
import zipfile

import pytest
import torch
from torch import nn

from fourm_lite.embedders.convert import convert_pth
from fourm_lite.embedders.pth import read_pth
from fourm_lite.errors import CheckpointError, FourMError


def network(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2)).state_dict()


NET, AVERAGED = network(), network(1)
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.fixture
def read(tmp_path):
    """A function that saves a value as a .pth file and reads it."""

    def saved(value, **options):
        torch.save(value, tmp_path / "x.pth")
        return read_pth(tmp_path / "x.pth", **options)

    return saved


def same(weights, expected):
    return weights.keys() == expected.keys() and all(
        torch.equal(weights[k], expected[k]) for k in expected
    )


BOOKS = {
    "nothing": {},
    "a best accuracy": {"best_acc1": torch.tensor(71.2), "epoch": 3},
    "a loss": {"loss": torch.tensor(0.4)},
    "losses": {"losses": torch.ones(3, 4)},
    "a generator's state": {"rng_state": torch.get_rng_state()},
    "states of several generators": {"rng": {"cuda": [torch.get_rng_state()] * 2}},
    "an optimizer": {"optimizer": OPTIMIZER, "optimizers": [OPTIMIZER]},
    "a centre of a loss": {"dino_loss": {"center": torch.ones(1, 5)}},
}


@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict", "anything", "ema"])
@pytest.mark.parametrize("books", BOOKS.values(), ids=BOOKS)
def test_the_books_beside_a_network_are_not_taken_for_it(read, nest, books):
    found = read({**books, nest: NET})

    assert same(found.weights, NET)
    loose = [key for key, value in books.items() if isinstance(value, torch.Tensor)]
    assert set(loose) <= set(found.left_out)


@pytest.mark.parametrize(
    "value",
    [
        NET,
        {**NET, "epoch": 3},
        {"checkpoint": {"model": NET}},
        {"model": {"state_dict": NET}},
        [{"state_dict": NET}],
        {"scale": torch.ones(3), "model": NET},
    ],
)
def test_a_network_is_found_wherever_it_lies(read, value):
    assert same(read(value).weights, NET)


def test_a_file_of_vectors_alone_is_taken_too(read):
    assert read({"norm.weight": torch.ones(3)}).weights.keys() == {"norm.weight"}
    assert read({"model": {"norm.weight": torch.ones(3)}}).weights.keys() == {"norm.weight"}


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema", "ema", "ema_state_dict"])
def test_averaged_weights_come_first_and_the_others_are_told(read, name):
    found = read({"state_dict": NET, name: AVERAGED})

    assert same(found.weights, AVERAGED)
    assert f"taken from '{name}'; 'state_dict' holds tensors of the same shapes" in found.notes[0]
    assert "state_dict.0.weight" in found.left_out
    assert same(read({"state_dict": NET, name: AVERAGED}, part="state_dict").weights, NET)


UNREAD = {
    "a head": {"state_dict": NET, "head": network(width=3)},
    "two networks": {"generator": NET, "discriminator": network(width=3)},
    "two equal networks": {"left": NET, "right": AVERAGED},
    "parts of one network": {name: {"w": torch.ones(2, 2)} for name in ("encoder", "decoder")},
    "a matrix beside": {"model": NET, "codebook": torch.ones(4, 4)},
    "one network in another": {"model": {**NET, "inner": network(width=3)}},
    "a list of matrices": {"model": NET, "layers": [torch.ones(2, 2)]},
}  # fmt: skip


@pytest.mark.parametrize("value", UNREAD.values(), ids=UNREAD)
def test_weights_that_would_stay_unread_are_refused(read, value):
    with pytest.raises(CheckpointError, match="--part"):
        read(value)


def test_a_part_is_read_by_its_name(read):
    value = {"generator": NET, "discriminator": {"net": AVERAGED}}

    assert same(read(value, part="generator").weights, NET)
    assert same(read(value, part="discriminator.net").weights, AVERAGED)
    with pytest.raises(CheckpointError, match="Did you mean 'generator'"):
        read(value, part="generater")


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "backbone.{}",
        "module.backbone.{}", "_fsdp_wrapped_module.{}", "_orig_mod.backbone.{}",
    ],
)  # fmt: skip
def test_what_wrappers_put_before_names_is_taken_off_and_told(read, wrapped):
    found = read({"state_dict": {wrapped.format(key): value for key, value in NET.items()}})

    assert same(found.weights, NET)
    for word in wrapped.format("").split(".")[:-1]:
        assert f"'{word}.'" in " ".join(found.notes)


def test_a_compiled_part_inside_a_network_has_its_own_name(read):
    found = read({"encoder._orig_mod.weight": torch.ones(2, 2), "head.weight": torch.ones(2, 2)})

    assert found.weights.keys() == {"encoder.weight", "head.weight"}


def test_a_prefix_of_some_names_stays_and_is_told(read):
    found = read({"backbone.w": torch.ones(2, 2), "head.w": torch.ones(2, 2)})

    assert found.weights.keys() == {"backbone.w", "head.w"}
    assert found.notes == ("1 of 2 names begin with 'backbone.', which stays",)


def test_a_name_that_comes_twice_is_refused(read):
    with pytest.raises(CheckpointError, match="twice"):
        read({"module.w": torch.ones(2, 2), "w": torch.zeros(2, 2)})


def test_a_file_that_holds_itself_ends(read):
    book = {"epoch": 3}
    book["model"] = book
    around = [1]
    around.append(around)

    for value in (book, {"model": around, "state_dict": around}):
        with pytest.raises(CheckpointError, match="no dictionary of tensors"):
            read(value)
    assert same(read({**book, "state_dict": NET}).weights, NET)


@pytest.mark.parametrize("new", [True, False])
def test_whatever_is_wrong_with_a_file_ends_in_our_error(tmp_path, new):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"model": {"w": torch.ones(4, 4)}}, good, _use_new_zipfile_serialization=new)
    whole = good.read_bytes()
    generator = torch.Generator().manual_seed(0)
    ends = collections.Counter()

    for trial in range(300):
        at = int(torch.randint(len(whole), (), generator=generator))
        rest = b"" if trial % 3 == 0 else bytes([whole[at] ^ (1 << trial % 8)]) + whole[at + 1 :]
        bad.write_bytes(whole[:at] + rest)
        try:
            convert_pth(bad, tmp_path / "out")
            ends["read"] += 1
        except FourMError:
            ends["told"] += 1

    assert ends["told"] > 50


def test_a_small_file_of_large_tensors_is_refused(read):
    with pytest.raises(CheckpointError, match="repeat few values"):
        read({"w": torch.zeros(1).expand(1 << 10, 1 << 10)})


def test_an_archive_that_grows_when_it_is_read_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2 << 20))

    with pytest.raises(CheckpointError, match="would take"):
        read_pth(tmp_path / "x.pth")


def test_a_folder_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="is no file"):
        read_pth(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_pth(tmp_path / "none.pth")
