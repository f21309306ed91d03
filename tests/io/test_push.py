"""What is pushed to the hub is opened from there by its name."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from tiny import tiny_model
from tiny_training import tokenizing

from fourm_lite.backbone.vit import FMViT
from fourm_lite.cli import main
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.push import CardFacts, model_card, push
from fourm_lite.model.load import load_model
from fourm_lite.tokenization.load import load_tokenizer


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that is a folder: commits go into the cache that the hub's client reads."""
    cache = tmp_path / "cache"

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        assert exist_ok
        return f"https://huggingface.co/{repo_id}"

    def create_commit(self, repo_id, operations, *, commit_message, revision=None):
        assert revision is None
        commit = hashlib.sha1(repo_id.encode()).hexdigest()
        place = cache / f"models--{repo_id.replace('/', '--')}"
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        for one in operations:
            target = place / "snapshots" / commit / one.path_in_repo
            if isinstance(one.path_or_fileobj, bytes):
                target.write_bytes(one.path_or_fileobj)
            else:
                shutil.copy(one.path_or_fileobj, target)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def card(hub, name):
    (file,) = hub.glob(f"models--me--{name}/snapshots/*/README.md")
    return huggingface_hub.ModelCard(file.read_text())


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_model_is_opened_by_the_name_it_was_pushed_to(hub):
    model = tiny_model()

    address = model.push_to_hub(
        "me/tiny", facts=CardFacts(licence="apache-2.0", datasets=("coco",))
    )

    assert address == "https://huggingface.co/me/tiny"
    assert same(state_of(load_model("me/tiny")), state_of(model))
    head = card(hub, "tiny").data.to_dict()
    assert head["license"] == "apache-2.0"
    assert head["datasets"] == ["coco"]
    assert head["library_name"] == "fourm_lite"
    assert head["pipeline_tag"] == "any-to-any"


def test_a_tokenizer_is_opened_by_the_name_it_was_pushed_to(hub):
    tokenizer = tokenizing()[0].model

    tokenizer.push_to_hub("me/codes")

    assert same(state_of(load_tokenizer("me/codes")), state_of(tokenizer))
    assert 'load_tokenizer("me/codes")' in card(hub, "codes").text
    assert "pipeline_tag" not in card(hub, "codes").data.to_dict()


def test_a_classifier_brings_its_accuracy(hub, tmp_path):
    vit = FMViT.from_pretrained(tiny_model().save(tmp_path / "model"), num_classes=3)
    vit.save(tmp_path / "flowers")
    report = {"accuracy": 0.91234, "protocol": {"data": "x/flowers5", "measured_on": "test"}}
    (tmp_path / "flowers" / "report.json").write_text(json.dumps(report))
    (tmp_path / "flowers" / "skipped.json").write_text('["/home/me/private.jpg"]')

    push(tmp_path / "flowers", "me/flowers")

    assert same(state_of(FMViT.from_pretrained("me/flowers")), state_of(vit))
    (result,) = card(hub, "flowers").data.eval_results
    assert (result.metric_value, result.dataset_name) == (0.9123, "flowers5")
    assert card(hub, "flowers").data.pipeline_tag == "image-classification"
    assert not list(hub.rglob("skipped.json"))


def test_the_text_of_a_card_that_is_there_is_kept(tmp_path):
    folder = Path(tiny_model().save(tmp_path / "model"))
    (folder / "card.md").write_text(
        "---\nlicense: other\nlicense_name: research alone\nlanguage: en\n---\n"
        "# Mine\n\nIts story.\n"
    )

    made = huggingface_hub.ModelCard(model_card(folder, "me/mine"))

    assert made.text.strip() == "# Mine\n\nIts story."
    head = made.data.to_dict()
    assert (head["license"], head["license_name"]) == ("other", "research alone")
    assert head["language"] == "en"


def test_save_pretrained_writes_a_card_that_tells_the_licence(tmp_path):
    facts = CardFacts(licence="mit", base_model="me/base")

    folder = tiny_model().save_pretrained(tmp_path / "model", facts=facts)

    assert load_model(folder) is not None
    head = huggingface_hub.ModelCard((folder / "README.md").read_text()).data.to_dict()
    assert (head["license"], head["base_model"]) == ("mit", "me/base")


def test_a_licence_that_the_weights_do_not_have_is_refused(tmp_path):
    folder = tiny_model().save_pretrained(tmp_path / "model", facts=CardFacts(licence="mit"))

    with pytest.raises(ConfigError, match=r"state the terms 'mit', and 'apache-2\.0' was given"):
        model_card(folder, "me/tiny", CardFacts(licence="apache-2.0"))

    assert "license: mit" in model_card(folder, "me/tiny", CardFacts(licence="mit"))


def test_the_verb_pushes_and_a_dry_run_shows(capsys, hub, tmp_path):
    folder = tiny_model().save(tmp_path / "model")
    for words in (["--dry-run"], []):
        with pytest.raises(SystemExit) as stopped:
            main(["push", str(folder), "me/verb", "--licence", "mit", "--json", *words])
        told = json.loads(capsys.readouterr().out)

        assert stopped.value.code == 0
        assert told["pushed"] == (not words)
        assert "license: mit" in told["card"]
        assert hub.exists() == (not words)


def test_what_cannot_be_pushed_is_said_before_the_network_is_asked(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="owner/name"):
        push("mini", "mini")
    with pytest.raises(CheckpointError):
        push(tmp_path, "me/empty")

    def refused(self, *args, **kwargs):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    with pytest.raises(FourMError, match="hf auth login"):
        push(tiny_model().save(tmp_path / "model"), "me/tiny")
