import contextlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourm_lite.errors import CheckpointError, FourMError, StorageError
from fourm_lite.io import writing
from fourm_lite.io.checkpoint import read, write, write_single

CONFIG = {"format": 1, "dim": 8, "inputs": [{"name": "rgb@224", "grid": [14, 14]}]}
OTHER = {"format": 1, "dim": 9}


def weights(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 4, generator=draw),
        "turned": torch.randn(4, 2, generator=draw).t(),
        "half": torch.randn(3, generator=draw).half(),
        "brain": torch.randn(3, generator=draw).bfloat16(),
        "count": torch.tensor(seed),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


def in_shards(folder, config, values):
    """A checkpoint in shards, as transformers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {n: f"model-{i:05d}-of-{len(values):05d}.safetensors" for i, n in enumerate(values, 1)}
    for name, file in names.items():
        save_file({name: values[name].contiguous()}, folder / file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"config": json.dumps(config)}, "weight_map": names})
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


WRITERS = {
    "folder": write,
    "single": lambda folder, *rest: write_single(folder / "one.safetensors", *rest),
}


def same(checkpoint, config, values):
    loaded = checkpoint.load()
    return checkpoint.config == config and all(
        torch.equal(loaded[n], v) and loaded[n].dtype == v.dtype for n, v in values.items()
    )


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_what_is_written_reads_back(tmp_path, writer):
    place = writer(tmp_path, CONFIG, weights())

    assert same(read(place), CONFIG, weights())


@pytest.mark.parametrize("first", [*WRITERS.values(), in_shards], ids=[*WRITERS, "shards"])
def test_writing_again_replaces_everything(tmp_path, first):
    first(tmp_path, CONFIG, weights())

    write(tmp_path, OTHER, weights(1))

    assert same(read(tmp_path), OTHER, weights(1))
    left = [n for n in os.listdir(tmp_path) if n.endswith(("tmp", "next"))]
    assert not left


def test_a_checkpoint_can_be_written_over_itself_while_it_is_mapped(tmp_path):
    loaded = read(write(tmp_path, CONFIG, weights())).load()

    write(tmp_path, OTHER, loaded)

    assert same(read(tmp_path), OTHER, weights())


def test_other_readers_understand_the_files(tmp_path):
    write(tmp_path, CONFIG, weights(), metadata={"note": "mine"})

    loaded = load_file(tmp_path / "model.safetensors")

    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    assert all(torch.equal(loaded[name], value) for name, value in weights().items())


def test_the_weights_file_alone_tells_its_config(tmp_path):
    write(tmp_path, CONFIG, weights())
    (tmp_path / "config.json").unlink()

    assert same(read(tmp_path), CONFIG, weights())


def test_tensors_that_share_memory_are_each_written(tmp_path):
    table = torch.randn(6, 2)

    write(tmp_path, CONFIG, {"a": table, "b": table, "rows": table[2:4]})

    assert torch.equal(read(tmp_path).load()["rows"], table[2:4])
    assert torch.equal(read(tmp_path).load()["b"], table)


BAD = {
    "a config that is no JSON": ({"a": object()}, weights()),
    "a config with nan": ({"a": float("nan")}, weights()),
    "a tensor without storage": (OTHER, {**weights(), "m": torch.zeros(2, device="meta")}),
    "a sparse tensor": (OTHER, {**weights(), "s": torch.eye(2).to_sparse()}),
    "a complex tensor": (OTHER, {**weights(), "c": torch.zeros(2, dtype=torch.complex64)}),
    "a list": (OTHER, {**weights(), "l": [1.0]}),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize(("config", "values"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, writer, config, values):
    with pytest.raises(CheckpointError):
        writer(tmp_path / "new", config, values)

    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("old", [write, in_shards], ids=["from folder", "from shards"])
def test_a_writer_that_fails_anywhere_leaves_the_old_checkpoint(tmp_path, monkeypatch, old):
    """Every renaming and every flush fails once: the old or the new checkpoint is there, whole."""
    for name in ("replace", "fsync"):
        for number in range(20):
            place = tmp_path / f"{name}{number}"
            old(place, CONFIG, weights())
            with monkeypatch.context() as patch:
                patch.setattr(writing.os, "fsync", lambda descriptor: None)  # slow, proves nothing
                patch.setattr(writing.os, name, failing(getattr(writing.os, name), number))
                with contextlib.suppress(FourMError):
                    write(place, OTHER, weights(1))

            checkpoint = read(place)
            assert same(checkpoint, CONFIG, weights()) or same(checkpoint, OTHER, weights(1))


@pytest.mark.parametrize("old", [write, in_shards], ids=["from folder", "from shards"])
def test_a_killed_writer_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, old):
    """As above, but nothing is tidied up: the process is gone."""
    for number in range(20):
        place = tmp_path / str(number)
        old(place, CONFIG, weights())
        with monkeypatch.context() as patch:
            calls = iter(range(number))

            def dying(method, calls=calls):
                def call(*args, **options):
                    if next(calls, None) is None:
                        raise KilledError
                    return method(*args, **options)

                return call

            patch.setattr(writing.os, "fsync", lambda descriptor: None)
            patch.setattr(writing.os, "replace", dying(os.replace))
            patch.setattr(writing.Path, "unlink", dying(writing.Path.unlink))
            patch.setattr(writing.Path, "rmdir", dying(writing.Path.rmdir))
            with contextlib.suppress(KilledError):
                write(place, OTHER, weights(1))

        checkpoint = read(place)
        assert same(checkpoint, CONFIG, weights()) or same(checkpoint, OTHER, weights(1)), number


class KilledError(BaseException):
    """Stands for SIGKILL."""


def failing(method, number):
    """The method, whose call of this number fails as on a full disk."""
    calls = iter(range(number))

    def call(*args, **options):
        if next(calls, None) is None and not failing_done:
            failing_done.append(True)
            raise OSError(28, "No space left on device")
        return method(*args, **options)

    failing_done: list[bool] = []
    return call


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="cannot write"):
        write(tmp_path / "file" / "new", CONFIG, weights())


def test_a_single_file_needs_its_suffix(tmp_path):
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        write_single(tmp_path / "model.pth", CONFIG, weights())


def test_a_single_file_does_not_slip_between_a_folder_and_its_config(tmp_path):
    write(tmp_path, CONFIG, weights())

    with pytest.raises(CheckpointError, match="write the folder"):
        write_single(tmp_path / "model.safetensors", OTHER, weights(1))


def test_tensors_of_even_sizes_start_where_allocated_ones_would(tmp_path):
    values = {
        "odd": torch.zeros(3),
        "a": torch.zeros(4, 16),
        "b": torch.zeros(64, dtype=torch.uint8),
    }

    loaded = read(write(tmp_path, CONFIG, values)).load()

    assert loaded["a"].data_ptr() % 64 == 0
    assert loaded["b"].data_ptr() % 64 == 0
