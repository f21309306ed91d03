from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model
from tiny_photos import write_list
from verbs import run

from fourm_lite.backbone.config import HeadConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.finetune.finetune import FinetuneConfig, classifier, finetune, layer_scales, unread
from fourm_lite.finetune.pixels import PhotoStream
from fourm_lite.finetune.probe import (
    accuracy,
    choose_linear,
    class_weights,
    fit_linear,
    photo_features,
    set_linear_head,
)
from fourm_lite.finetune.task import MixConfig, predict
from fourm_lite.io.files import alone
from fourm_lite.photos.labelled import read_labelled, read_splits
from fourm_lite.training import loop
from fourm_lite.training.loop import checkpoints
from fourm_lite.training.processes import make_accelerator

QUICK = {"epochs": 2, "batch_size": 8, "workers": 0, "smoothing": 0.1}


@pytest.fixture
def model(tmp_path):
    return tiny_model(scale=2.0).save(tmp_path / "model")


@pytest.fixture
def photos(tmp_path):
    return read_splits(write_list(tmp_path / "photos"))


def test_a_probe_tells_colours_apart_and_its_head_gives_the_probes_logits(model, photos):
    vit = FMViT.from_pretrained(model, head=HeadConfig(num_classes=3))
    sets = [(photo_features(vit, s), s.labels) for s in (photos.train, photos.val, photos.test)]

    linear = choose_linear(sets[0], sets[1], 3)
    set_linear_head(vit, linear)

    assert accuracy(linear(sets[2][0]), sets[2][1]) > 0.9
    got = predict(vit, photos.test, (16, 16))
    torch.testing.assert_close(got, linear(sets[2][0]), rtol=1e-3, atol=1e-3)


def test_the_probe_is_the_minimum_that_scikit_learn_finds():
    sklearn = pytest.importorskip("sklearn.linear_model")
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=g), torch.randint(0, 3, (60,), generator=g)
    x = (x - x.mean(0)) / x.std(0, correction=0)

    linear = fit_linear(x, y, 3, l2=0.1)

    want = sklearn.LogisticRegression(C=1 / (0.1 * 60), tol=1e-8, max_iter=500).fit(x, y)
    torch.testing.assert_close(
        linear.weight, torch.from_numpy(want.coef_).float(), rtol=1e-2, atol=1e-3
    )


def test_features_are_computed_once(model, photos, tmp_path, monkeypatch):
    vit = FMViT.from_pretrained(model, num_classes=0)
    first = photo_features(vit, photos.val, cache=tmp_path / "cache")
    monkeypatch.setattr(FMViT, "forward_features", None)

    assert torch.equal(photo_features(vit, photos.val, cache=tmp_path / "cache"), first)
    with pytest.raises(TypeError):
        photo_features(vit, photos.train, cache=tmp_path / "cache")


@pytest.mark.parametrize("in_bytes", [False, True])
def test_features_of_a_replaced_photo_are_computed_again(model, photos, tmp_path, in_bytes):
    vit = FMViT.from_pretrained(model, num_classes=0)
    files = [photos.train.photos[row].record.image for row in (0, -1)]
    assert files[0].read_bytes() != files[1].read_bytes()

    def features():
        photo = photos.train.photos[0]
        image = files[0].read_bytes() if in_bytes else files[0]
        given = replace(photo, record=replace(photo.record, image=image))
        one = replace(photos.train, photos=(given,))
        return photo_features(vit, one, cache=tmp_path / "features")

    first = features()
    files[0].write_bytes(files[1].read_bytes())

    assert not torch.equal(features(), first)


def test_a_linear_probe_says_what_it_does_not_read():
    given = {"epochs": 3, "mix": MixConfig(mixup=0.8), "balance": "sample", "lr": 0.1}

    told = unread(FinetuneConfig(**given))

    assert told.endswith("does not read --epochs, --lr, --mixup, --cutmix, --balance sample")
    assert not unread(FinetuneConfig(seed=3, balance="loss"))
    assert not unread(FinetuneConfig(**given, pool="attentive"))
    assert not unread(FinetuneConfig(**given, mode="full"))


@pytest.mark.parametrize("word", ["cpu", ""])
def test_the_device_reaches_the_loop(model, photos, tmp_path, monkeypatch, word):
    made = []
    monkeypatch.setattr(
        loop, "make_accelerator", lambda *words: made.append(words) or make_accelerator(*words)
    )
    config = FinetuneConfig(**QUICK, mode="full")

    finetune(model, photos, tmp_path / "out", config, device=word or None)

    assert made == [("no", word)]


def test_rare_classes_weigh_more_and_the_average_photo_one():
    counts = torch.tensor([30, 10, 0])

    weights = class_weights(counts)

    assert weights[1] == 3 * weights[0]
    assert (weights[:2] * counts[:2]).sum() / 40 == pytest.approx(1)


MODES = {
    "probe": {"mode": "probe"},
    "attentive probe": {"mode": "probe", "pool": "attentive"},
    "lora": {"mode": "lora", "balance": "loss"},
    "full": {"mode": "full", "balance": "sample"},
    "full, mixed": {"mode": "full", "mix": MixConfig(mixup=0.8, cutmix=1.0)},
    "from scratch": {"mode": "full", "from_scratch": True},
    "two layers": {"mode": "full", "layers": 2, "dropout": 0.1, "drop_path": 0.1},
}


@pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
def test_every_mode_writes_a_classifier_that_opens_again(model, photos, tmp_path, settings):
    found = finetune(model, photos, tmp_path / "out", FinetuneConfig(**QUICK, **settings))

    again = FMViT.from_pretrained(tmp_path / "out")
    want = predict(found.model, photos.test, (16, 16))
    assert torch.equal(predict(again, photos.test, (16, 16)), want)
    assert again.config.class_names == ("blue", "green", "red")
    assert not any("lora" in name for name in again.state_dict())


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_training_starts_from_the_probe_and_does_not_lose_it(model, photos, tmp_path, mode):
    found = finetune(model, photos, tmp_path / "out", FinetuneConfig(**QUICK, mode=mode))

    assert accuracy(predict(found.model, photos.test, (16, 16)), photos.test.labels) > 0.9


def test_a_finished_classifier_is_not_replaced_without_a_word(model, photos, tmp_path):
    config = FinetuneConfig(**QUICK, mode="probe")
    finetune(model, photos, tmp_path / "out", config)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    with pytest.raises(FourMError, match="already holds a classifier"):
        finetune(model, photos, tmp_path / "out", FinetuneConfig(**QUICK, mode="lora"))

    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_frozen_parts_stay_as_they_were(model, photos, tmp_path):
    before = FMViT.from_pretrained(model, num_classes=0).state_dict()

    config = FinetuneConfig(**QUICK, mode="probe", pool="attentive")
    after = finetune(model, photos, tmp_path / "out", config).model.state_dict()

    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(model, photos, tmp_path):
    config = FinetuneConfig(**{**QUICK, "epochs": 3}, mode="full")
    whole = finetune(model, photos, tmp_path / "a", config)
    short = FinetuneConfig(**{**QUICK, "epochs": 3}, mode="full", max_seconds=1e-9)

    first = finetune(model, photos, tmp_path / "b", short)
    with pytest.raises(FourMError, match="already holds a run"):
        finetune(model, photos, tmp_path / "b", config)
    rest = finetune(model, photos, tmp_path / "b", config, resume=True)

    assert not first.done
    assert rest.done
    for (name, a), b in zip(
        whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_run_that_gets_no_better_stops_early(model, photos, tmp_path):
    config = FinetuneConfig(**{**QUICK, "epochs": 30}, mode="full", lr=1e-9, patience=2)

    found = finetune(model, photos, tmp_path / "out", config)

    assert found.stopped_early
    log = (tmp_path / "out" / "run" / "log.jsonl").read_text()
    assert max(json.loads(line)["epoch"] for line in log.splitlines()) <= 4
    again = finetune(model, photos, tmp_path / "out", config, resume=True)
    assert torch.equal(again.model.head.weight, found.model.head.weight)
    assert (again.stopped_early, again.best_val) == (True, found.best_val)
    assert checkpoints(tmp_path / "out" / "run")


class KilledError(BaseException):
    """Stands for SIGKILL."""


def test_a_validation_before_a_kill_counts_once(model, photos, tmp_path, monkeypatch):
    config = FinetuneConfig(**{**QUICK, "epochs": 8}, mode="full", lr=1e-9, patience=3)
    whole = finetune(model, photos, tmp_path / "whole", config)
    real = loop.save_state

    for number in range(3):  # each time between a validation and its checkpoint
        saved = iter(range(min(number, 1)))

        def killed(*words, saved=saved):
            if next(saved, None) is None:
                raise KilledError
            return real(*words)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_state", killed)
            with pytest.raises(KilledError):
                finetune(model, photos, tmp_path / "parts", config, resume=number > 0)
    parts = finetune(model, photos, tmp_path / "parts", config, resume=True)

    assert parts.stopped_early
    assert (parts.stopped_early, parts.best_val) == (whole.stopped_early, whole.best_val)
    books = [(tmp_path / n / "run/best/best.json").read_text() for n in ("whole", "parts")]
    assert books[0] == books[1]


def test_two_runs_in_one_folder_are_refused_in_a_sentence(model, photos, tmp_path):
    with alone(tmp_path / "out"), pytest.raises(FourMError, match="another process"):
        finetune(model, photos, tmp_path / "out", FinetuneConfig(**QUICK))


def test_a_refused_run_keeps_its_best_weights(model, photos, tmp_path):
    config = FinetuneConfig(**{**QUICK, "epochs": 30}, mode="full", lr=1e-9, patience=2)
    found = finetune(model, photos, tmp_path / "out", config)

    with pytest.raises(FourMError, match="already holds a run"):
        finetune(model, photos, tmp_path / "out", config)
    again = finetune(model, photos, tmp_path / "out", config, resume=True)

    assert again.best_val == found.best_val > 0
    for (name, a), b in zip(
        found.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_an_ended_run_without_its_best_weights_is_not_replaced_by_the_start(
    model, photos, tmp_path
):
    config = FinetuneConfig(**{**QUICK, "epochs": 30}, mode="full", lr=1e-9, patience=2)
    finetune(model, photos, tmp_path / "out", config)
    shutil.rmtree(tmp_path / "out" / "run" / "best")

    with pytest.raises(FourMError, match="best weights are gone"):
        finetune(model, photos, tmp_path / "out", config, resume=True)


def test_nothing_pretrained_is_left_from_scratch(model, photos):
    found = FMViT.from_pretrained(model, num_classes=3)
    with torch.no_grad():
        for value in found.parameters():
            value.fill_(7.0)
    found.save(model.parent / "sevens")

    drawn = classifier(
        model.parent / "sevens", photos.train, FinetuneConfig(mode="full", from_scratch=True)
    )

    assert not [name for name, value in drawn.named_parameters() if (value == 7).any()]


def test_several_labels_a_photo_are_learnt_each_for_itself(model, tmp_path):
    root = write_list(tmp_path / "photos")
    path = root / "labels.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["label"] = [row["label"], "colour"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    photos = read_splits(root)

    for mode in ("probe", "full"):
        found = finetune(model, photos, tmp_path / mode, FinetuneConfig(**QUICK, mode=mode))
        logits = predict(found.model, photos.test, (16, 16))
        assert found.model.config.head.multi_label
        assert accuracy(logits, photos.test.labels) > 0.8


def test_the_learning_rate_falls_from_block_to_block(model):
    vit = FMViT.from_pretrained(model, num_classes=3)

    assert layer_scales(vit, 0.5) == {
        "encoder.0.": 0.25, "encoder.1.": 0.5, "encoder_embeddings.": 0.125,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "half"}, "mode is one of"),
        ({"balance": "yes"}, "balance is"),
        ({"epochs": 0}, "at least 1"),
        ({"layer_decay": 2.0}, "layer_decay"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**settings)


def test_mixing_is_for_one_label_a_photo(model, tmp_path):
    root = write_list(tmp_path / "photos")
    rows = [json.loads(line) for line in (root / "labels.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**row, "label": [row["label"]]}) + "\n" for row in rows)
    (root / "labels.jsonl").write_text(text)
    config = FinetuneConfig(**QUICK, mode="full", mix=MixConfig(mixup=0.5))

    with pytest.raises(ConfigError, match="one label a photo"):
        finetune(model, read_splits(root), tmp_path / "out", config)


def test_photos_of_a_set_keep_their_order_in_batches_of_any_size(model, tmp_path):
    data = read_labelled(write_list(tmp_path / "photos"))
    vit = FMViT.from_pretrained(model, num_classes=0)

    torch.testing.assert_close(
        photo_features(vit, data, batch_size=4), photo_features(vit, data, batch_size=45)
    )


def called(capsys, *words):
    code, out, err = run(capsys, *words)
    return code, out + err


@pytest.fixture
def listed(tmp_path):
    return write_list(tmp_path / "listed")


def begun(model, listed, tmp_path):
    words = ("finetune", listed, "-m", model, "-o", tmp_path / "out", "--mode", "full")
    return *words, "--epochs", "3", "--batch-size", "8", "--patience", "0"


def test_a_photo_that_becomes_unreadable_while_it_is_trained_on_is_left_out_and_listed(
    model, listed, tmp_path, capsys, monkeypatch
):
    batch, gone = PhotoStream.batch, listed / "images" / "red" / "3.png"

    def lose(self, step, **place):
        if step == 4:
            gone.unlink(missing_ok=True)
        return batch(self, step, **place)

    monkeypatch.setattr(PhotoStream, "batch", lose)

    code, told = called(capsys, *begun(model, listed, tmp_path))

    assert code == 0, told
    (left_out,) = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert (left_out["id"], left_out["in_training"]) == ("red/3", True)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["protocol"]["skipped"] == 1


def test_a_run_is_resumed_when_a_photo_has_been_lost_meanwhile(model, listed, tmp_path, capsys):
    (listed / "images" / "blue" / "0.png").write_bytes(b"no picture from the start")
    words = begun(model, listed, tmp_path)
    assert called(capsys, *words, "--max-seconds", "0.0001")[0] == 0
    (listed / "images" / "red" / "3.png").unlink()
    (listed / "images" / "green" / "9.png").unlink()  # of the validation listed

    code, told = called(capsys, *words, "--resume")

    assert code == 0, told
    rows = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert {row["id"]: row.get("in_training", False) for row in rows} == {
        "blue/0": False, "red/3": True, "green/9": False
    }  # fmt: skip


def test_a_run_ends_when_many_photos_are_lost(model, listed, tmp_path, capsys):
    words = begun(model, listed, tmp_path)
    assert called(capsys, *words, "--max-seconds", "0.0001")[0] == 0
    for number in range(6):
        (listed / "images" / "red" / f"{number}.png").rename(listed / f"away-{number}.png")

    code, told = called(capsys, *words, "--resume")
    assert code == 2
    assert "have become unreadable" in " ".join(told.split())

    for number in range(6):
        (listed / f"away-{number}.png").rename(listed / "images" / "red" / f"{number}.png")
    assert called(capsys, *words, "--resume")[0] == 0
