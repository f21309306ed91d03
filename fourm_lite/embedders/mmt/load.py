"""From what was saved to a network, and to a folder of ours: every weight fits, or is named."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fourm_lite.embedders.features import FeatureStore
from fourm_lite.embedders.mmt.batches import RegionReader, Words, open_tokenizer
from fourm_lite.embedders.mmt.network import POOLINGS, JointConfig, JointEncoder, Sizes
from fourm_lite.embedders.mmt.saved import DOOR, Saved, read_saved
from fourm_lite.embedders.pth import Weights
from fourm_lite.errors import CheckpointError, check_choice
from fourm_lite.io.files import write_json, write_whole
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.writing import write_file
from fourm_lite.nn.device import without_storage

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Joint:
    """An open network with what reads its words and regions."""

    model: JointEncoder
    words: Words
    regions: RegionReader

    @property
    def config(self) -> JointConfig:
        """Its numbers."""
        return self.model.config


def open_joint(
    source: str | Path,
    *,
    features: FeatureStore | str | Path | None = None,
    tokenizer: Any = None,
    heads: int | None = None,
    pooling: str | None = None,
    device: str = "cpu",
) -> Joint:
    """The network of a folder or file, ready to read words and regions.

    Args:
        source: see `saved.read_saved`
        features: where ids of pictures are looked up
        tokenizer: a file, folder or name in place of the saved one
        heads: attention heads, where no file says how many
        pooling: cls, max, mean or mean_sqrt, several with commas, in place of what is saved
        device: where it runs
    Raises:
        CheckpointError: weights or the tokenizer are missing or do not fit
        ConfigError: an option that is not known
    """
    saved = _told(read_saved(source, heads), heads, pooling)
    model = build(saved, str(source)).to(device).eval()
    given = tokenizer if tokenizer is not None else saved.tokenizer
    if given is None:
        raise CheckpointError(f"'{source}' holds no tokenizer; give one with tokenizer=PATH")
    found = open_tokenizer(given, lower_case=saved.config.lower_case)
    if found.get_vocab_size() > model.sizes.vocabulary:
        raise CheckpointError(
            f"the tokenizer has {found.get_vocab_size()} tokens and the network "
            f"{model.sizes.vocabulary}; give the tokenizer that it was trained with"
        )
    family = saved.config.layout
    limit = min(saved.config.max_words, model.sizes.positions - 2)
    store = features if isinstance(features, FeatureStore | None) else FeatureStore.open(features)
    reader = RegionReader(family.geometry, model.sizes.features, saved.config.max_regions, store)
    return Joint(model, Words(found, family, limit), reader)


def build(saved: Saved, what: str) -> JointEncoder:
    """The network with its weights.

    Raises:
        CheckpointError: a weight is missing, has another shape or is unknown
    """
    weights = {name: value.float() for name, value in saved.weights.items()}
    sizes = Sizes.of(weights, saved.config.layout)
    with without_storage():
        model = JointEncoder(saved.config, sizes, _heads(weights))
        if "regions.norms.sum.weight" in weights:
            model.regions.norms["sum"] = nn.LayerNorm(sizes.width, eps=saved.config.region_eps)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"'{what}' does not fit {saved.config.layout.title}: {error}"
        ) from error
    if saved.config.layout.positions == "sequence":
        needed = saved.config.max_regions + 1
        if sizes.positions < needed:
            raise CheckpointError(
                f"'{what}' has {sizes.positions} positions, {saved.config.max_regions} regions and "
                f"a word need {needed}"
            )
    return model


def _told(saved: Saved, heads: int | None, pooling: str | None) -> Saved:
    config = saved.config if heads is None else replace(saved.config, num_heads=int(heads))
    if pooling is not None:
        asked = pooling.split(",")
        check_choice("pooling", *asked, of=POOLINGS)
        config = replace(config, pooling=tuple(kind for kind in POOLINGS if kind in asked))
    return replace(saved, config=config)


def _heads(weights: Weights) -> dict[str, nn.Module]:
    """The matching heads, one matrix or two with a ReLU between, by the shapes of their weights."""
    found: dict[str, nn.Module] = {}
    for name in sorted({key.split(".")[1] for key in weights if key.startswith("heads.")}):
        shapes = {
            key.removeprefix(f"heads.{name}."): value.shape
            for key, value in weights.items()
            if key.startswith(f"heads.{name}.") and key.endswith("weight")
        }
        if set(shapes) == {"weight"}:
            labels, width = shapes["weight"]
            found[name] = nn.Linear(width, labels)
        elif set(shapes) == {"0.weight", "2.weight"}:
            (hidden, width), (labels, _) = shapes["0.weight"], shapes["2.weight"]
            found[name] = nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, labels)
            )
        else:
            raise CheckpointError(f"the head '{name}' has the weights {sorted(shapes)}, not known")
    return found


def convert_joint(source: str | Path, folder: str | Path) -> Saved:
    """Writes what `mmt:FOLDER` opens; nothing is written where the weights do not fit.

    A vocabulary goes along where the source has one; a published one stays a name.

    Raises:
        CheckpointError: weights are missing or do not fit
        ConfigError: a class or form that is not read
    """
    saved = read_saved(source)
    build(saved, str(source))
    tokenizer = None
    if isinstance(saved.tokenizer, Path):
        tokenizer = open_tokenizer(saved.tokenizer, lower_case=saved.config.lower_case)
    write_joint(folder, saved.config, saved.weights, tokenizer)
    return saved


def write_joint(
    folder: str | Path, config: JointConfig, weights: Weights, tokenizer: Tokenizer | None
) -> None:
    """Writes a network under our names, with its tokenizer where there is one."""
    root = Path(folder)
    write_file(root / WEIGHTS, weights, metadata=None)
    write_json(root / CONFIG, {"format": 1, "door": DOOR, **asdict(config)}, indent=2)
    if tokenizer is not None:
        write_whole(root / "tokenizer.json", tokenizer.to_str(pretty=True))
