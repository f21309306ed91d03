"""To the hub: models, tokenizers and classifiers with a card in the hub's own form.

What is pushed is what `load_model`, `load_tokenizer` and `FMViT.from_pretrained` read: the files of
the checkpoint, what is learnt beside it, and README.md with its YAML head. It goes as one commit,
so that nobody ever fetches half of it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.checkpoint import Checkpoint, read
from fourm_lite.io.files import write_whole
from fourm_lite.io.hub import is_hub_id, resolve
from fourm_lite.io.layout import INDEX, SPREAD, find_parts
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.reading.regular import read_text

LIBRARY = "fourm_lite"
README, CARD, REPORT = "README.md", "card.md", "report.json"
BESIDE = (SPREAD, "search.json")
"""Files with what was fitted for a model, kept beside its weights."""


class Savable(Protocol):
    """Something with weights."""

    def save(self, folder: str | Path) -> Any:
        """Writes config.json and model.safetensors into a folder."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says beside what is read from the files.

    Units:
        licence: an identifier of the hub ("apache-2.0"), or other terms in words; None: as stated
            in the files
        datasets: hub ids or names of what it was trained on
        base_model: the hub id of what it was made from
        text: Markdown instead of the text that the folder has, or that is made
    """

    licence: str | None = None
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    text: str | None = None


class HubMixin:
    """`save_pretrained` and `push_to_hub`, as users of the hub's other libraries know them."""

    def save_pretrained(
        self: Savable, folder: str | Path, *, facts: CardFacts | None = None
    ) -> Path:
        """Writes the checkpoint and its card, README.md, into a folder; returns the folder."""
        self.save(folder)
        place = Path(folder)
        write_whole(place / README, model_card(place, place.name, facts))
        return place

    def push_to_hub(
        self: Savable, repo_id: str, *, facts: CardFacts | None = None, **options: Any
    ) -> str:
        """Pushes the weights of now with a card; returns its address. See `push` for options."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return push(folder, repo_id, facts=facts, **options)


def push(
    source: str | Path,
    repo_id: str,
    *,
    facts: CardFacts | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload with fourm_lite",
) -> str:
    """Makes the repository if it is not there and commits the checkpoint; returns its address.

    Args:
        source: a folder, a .safetensors file or a shipped name
        repo_id: "owner/name" on the hub
        facts: for the card
        private: whether a new repository is; None: as the owner's settings say
        revision: the branch; the main one by default
        token: None takes HF_TOKEN, or what `hf auth login` stored
        message: of the commit

    Raises:
        CheckpointError: nothing that can be loaded is at `source`
        ConfigError: `repo_id` is no hub id
        FourMError: the hub refuses, or cannot be reached
    """
    check_repo_id(repo_id)
    place = resolve(source)
    card = model_card(place, repo_id, facts)
    files = pushed_files(place)
    from huggingface_hub import CommitOperationAdd, HfApi

    added = [CommitOperationAdd(path.name, str(path)) for path in files]
    added.append(CommitOperationAdd(README, card.encode()))
    api = HfApi(library_name=LIBRARY, token=token)
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, added, commit_message=message, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # HTTP errors are OSErrors; no login
        raise FourMError(
            f"the hub did not take '{repo_id}' ({type(error).__name__}: {error!s:.300}); log in "
            "with `hf auth login` or set HF_TOKEN to a token that may write there"
        ) from error
    return str(made)


def check_repo_id(repo_id: str) -> None:
    """Refuses what is no hub id.

    Raises:
        ConfigError: see above
    """
    if not is_hub_id(repo_id):
        raise ConfigError(f"a repository on the hub is called owner/name, got {repo_id[:200]!r}")


def pushed_files(place: Path) -> list[Path]:
    """The files of a checkpoint that are pushed; README.md is made."""
    parts = find_parts(place)
    folder = place if place.is_dir() else place.parent
    index = [folder / INDEX] if len(parts.weights) > 1 else []
    beside = [folder / name for name in (*BESIDE, REPORT)] if place.is_dir() else []
    terms = sorted(folder.glob("LICENSE*")) if place.is_dir() else []
    config = [] if parts.config is None else [parts.config]
    return [p for p in (*config, *parts.weights, *index, *beside, *terms) if p.is_file()]


def model_card(place: Path, name: str, facts: CardFacts | None = None) -> str:
    """README.md of a checkpoint: YAML that the hub reads, then text for people.

    The text of a README.md or card.md that is there is kept, and what its head says, too.

    Raises:
        CheckpointError: no checkpoint of ours is at `place`
        ConfigError: `facts` state another licence than the checkpoint or its card
    """
    from huggingface_hub import ModelCard, ModelCardData

    facts = facts or CardFacts()
    checkpoint = read(place)
    known = ModelCard(_written(place), ignore_metadata_errors=True)
    _check_terms(known.data.to_dict(), checkpoint.licence, facts.licence)
    told = {**known.data.to_dict(), **_metadata(checkpoint, facts, name)}
    told["tags"] = sorted({*(known.data.to_dict().get("tags") or ()), LIBRARY, "4m"})
    text = facts.text or known.text.strip() or _text(checkpoint, name, told)
    head = ModelCardData(ignore_metadata_errors=True, **told)
    results = _results(place)
    if results is not None:
        head.model_name, head.eval_results = name.split("/")[-1], [results]
    return f"---\n{head.to_yaml()}\n---\n\n{text}\n"


def _written(place: Path) -> str:
    """The card that is there; that of a tokenizer stands above its `weights/`."""
    folder = place if place.is_dir() else place.parent
    above = [folder.parent / CARD] if folder.name == "weights" else []
    for path in (folder / README, folder / CARD, *above):
        if path.is_file():
            return read_text(path)
    return ""


def _check_terms(card: dict[str, Any], stored: str | None, asked: str | None) -> None:
    """Refuses a licence that the weights do not have: what they were made from decides it."""
    stated = {str(t) for t in (card.get("license"), card.get("license_name"), stored) if t}
    if asked and stated and asked not in stated:
        terms = card.get("license_name") or card.get("license") or stored
        raise ConfigError(
            f"these weights state the terms '{terms}', and '{asked}' was given as their licence; "
            "leave the licence out to keep what is stated, or change it in card.md and config.json "
            "if that is wrong"
        )


def _metadata(checkpoint: Checkpoint, facts: CardFacts, name: str) -> dict[str, Any]:
    """What the hub sorts and searches by."""
    found: dict[str, Any] = {"library_name": LIBRARY}
    if task := _task(checkpoint.config):
        found["pipeline_tag"] = task
    if licence := facts.licence or checkpoint.licence:
        is_id = " " not in licence and licence == licence.lower()
        found |= {"license": licence} if is_id else {"license": "other", "license_name": licence}
    if facts.datasets:
        found["datasets"] = list(facts.datasets)
    if facts.base_model:
        found["base_model"] = facts.base_model
    if _task(checkpoint.config) == "image-classification":
        found["metrics"] = ["accuracy"]
    return found


def _kind(config: dict[str, Any]) -> str:
    if config.get("kind") in ("fmvit", "fourm"):
        return str(config["kind"])
    return "fourm" if "domains_in" in config else "tokenizer"


def _task(config: dict[str, Any]) -> str | None:
    """The hub's name for what a checkpoint does."""
    kind = _kind(config)
    if kind == "fmvit":
        classes = (config.get("head") or {}).get("num_classes", 0)
        return "image-classification" if classes else "image-feature-extraction"
    return "any-to-any" if kind == "fourm" else None


_LOADING = {
    "fourm": 'from fourm_lite import FourMPipeline\n\npipe = FourMPipeline.from_pretrained("{}")',
    "fmvit": 'from fourm_lite import FMViT\n\nmodel = FMViT.from_pretrained("{}")',
    "tokenizer": 'from fourm_lite import load_tokenizer\n\ntokenizer = load_tokenizer("{}")',
}
_WHAT = {
    "fourm": "A 4M model: any modalities from any others, and one vector from any of them.",
    "fmvit": "A vision transformer with the weights of a 4M encoder.",
    "tokenizer": "A tokenizer: values of one modality to token ids and back.",
}


def _text(checkpoint: Checkpoint, name: str, told: dict[str, Any]) -> str:
    kind = _kind(checkpoint.config)
    count = sum(_product(t.shape) for t in checkpoint.tensors.values())
    licence = told.get("license_name") or told.get("license") or "not stated"
    return "\n".join(
        [
            f"# {name.split('/')[-1]}", "", _WHAT[kind], "",
            "```python", _LOADING[kind].format(name), "```", "",
            f"- **Size.** {count / 1e6:.1f} M parameters.",
            f"- **Trained on.** {', '.join(told.get('datasets') or ()) or 'not stated'}.",
            f"- **Terms.** {licence}.",
        ]
    )  # fmt: skip


def _product(shape: Iterable[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _results(place: Path) -> Any:
    """The accuracy of a classifier whose report lies beside it."""
    from huggingface_hub import EvalResult

    if not (place / REPORT).is_file():
        return None
    with contextlib.suppress(FourMError, KeyError, TypeError, AttributeError):  # another's report
        report = read_json_object(place / REPORT)
        protocol = report["protocol"]
        data = Path(str(protocol["data"])).name or "photos"
        return EvalResult(
            task_type="image-classification", dataset_type=data, dataset_name=data,
            dataset_split=str(protocol["measured_on"]), metric_type="accuracy",
            metric_value=round(float(report["accuracy"]), 4),
        )  # fmt: skip
    return None
