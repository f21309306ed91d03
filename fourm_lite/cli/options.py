"""Options that several verbs share, each defined once, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli.output import require_file, say
from fourm_lite.errors import ConfigError, check_choice

if TYPE_CHECKING:
    from fourm_lite.cluster import Cluster
    from fourm_lite.embedders.rerankers import PairReranker

_PATTERN = "*?[{"
"""Letters of a pattern, which names files that are listed later."""


def present(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """A callback: refuses a path where nothing is, before any model is loaded.

    Raises:
        ConfigError: there is no such file or folder
    """
    if context.resilient_parsing:  # the shell asks what could come next
        return value
    for path in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        require_source(path, _called(param))
    return value


def require_source(path: str | Path | None, name: str) -> None:
    """Refuses a local path where nothing is; addresses and patterns are left to their reader.

    Raises:
        ConfigError: there is no such file or folder
    """
    if path is None or not str(path):
        return
    text = str(path)
    if (
        "://" in text or ":/" in text or Path(text).expanduser().exists()
    ):  # Path makes s3:/ of s3://
        return
    if not any(letter in text for letter in _PATTERN):
        raise ConfigError(f"{name} expects a file or folder, found none at {text}")


def writable(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """A callback: refuses a file that cannot be written, before the work."""
    if not context.resilient_parsing:
        require_file(value, _called(param))
    return value


def _called(param: typer.CallbackParam) -> str:
    """How people call a parameter: `--data`, PHOTOS."""
    return max(param.opts, key=len) if param.opts[0].startswith("-") else param.opts[0].upper()


Texts = list[str] | None

IndexPath = Annotated[str, typer.Argument(help="The index, by the folder or address it is at.")]
AnyModel = Annotated[
    str,
    typer.Option(
        "--model", "-m",
        help="Use this 4M model (a folder, a hub id or a shipped name), or an embedding network "
        "such as hf:FOLDER_OR_ID, timm:NAME or onnx:FILE.",
    ),
]  # fmt: skip
FourM = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Use this 4M model: a folder, a file, a hub id or a shipped name."
    ),
]
OwnModel = Annotated[
    Path,
    typer.Option(
        "--model", "-m", help="Use the 4M model in this folder, and write what is learnt into it."
    ),
]
IndexModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Use this model instead of the one that made the index."),
]
Gallery = Annotated[
    str,
    typer.Option(
        "--gallery",
        help="Say what embeds the photos: 'model' for the 4M model itself, or the network that "
        "its target imitates, such as onnx:FILE, dinov2 or imagebind.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", help="Search in this global embedding of the model; its first is the default."
    ),
]
Decode = Annotated[
    str,
    typer.Option(
        "--decode", help="Turn predictions into a vector by this way: expected, argmax or sample."
    ),
]
Center = Annotated[
    bool,
    typer.Option(
        "--center/--no-center",
        help="Subtract the mean vector before cosines are compared, which separates photos better.",
    ),
]
Tokenizers = Annotated[
    list[str] | None,
    typer.Option(
        "--tokenizers",
        help="Use other tokenizers than the model's own: NAME=SOURCE, where the source is a "
        "folder, a file or a hub id, or a folder that holds a folder for each. May be repeated.",
    ),
]
TextTokenizer = Annotated[
    str | None,
    typer.Option(
        "--text-tokenizer",
        help="Read and write text by this tokenizer file; '4m' names the original's.",
    ),
]
Think = Annotated[
    Texts,
    typer.Option(
        "--think",
        help="Generate this modality of each item first and read it with the rest: LULC of "
        "TerraMind. May be repeated.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", help="Send this many items through the network at once.", min=1),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Hold the weights as auto (float32), float32, bfloat16, float16 or int8; what that "
        "changes is told the first time.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="Run on this device, such as cpu or cuda.")
]
Data = Annotated[
    Path,
    typer.Option(
        "--data", help="Read photos with captions from this folder; it holds a captions.jsonl.",
        callback=present,
    ),
]  # fmt: skip
LabelledFolder = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Read labelled photos from this folder: it holds a labels.jsonl, or a folder for "
        "each class.",
        callback=present,
    ),
]
Split = Annotated[
    str,
    typer.Option("--split", help="Use the photos of this split, such as test; 'all' takes all."),
]
ListSplit = Annotated[
    str | None,
    typer.Option("--split", help="Use the photos of this split of a list; by default all."),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Draw at random from this seed; the same gives the same.")
]
QueryWhitening = Annotated[
    float | None,
    typer.Option(
        "--spread",
        help="Whiten queries by this power instead of the model's own: 0 not at all, 0.5 fully.",
    ),
]
Rerank = Annotated[
    int,
    typer.Option(
        "--rerank",
        help="Put this many of the first hits into a better order by their likelihood; 0 leaves "
        "the order of the cosines.",
        min=0,
    ),
]
RerankWeights = Annotated[
    Texts,
    typer.Option(
        "--rerank-weight",
        help="Weigh a part of the reranking by hand: cosine=, codes=, caption= or prior=NUMBER. "
        "May be repeated.",
    ),
]
RerankGiven = Annotated[
    str | None,
    typer.Option(
        "--rerank-given",
        help="Judge how likely words are from this of a hit: codes, pixels or both.",
    ),
]
RerankerName = Annotated[
    str | None,
    typer.Option(
        "--reranker",
        help="Rerank by another network of words and photos instead: a cross-encoder "
        "(hf:FOLDER_OR_ID) or a dual encoder (joint:joint_space).",
    ),
]
Samples = Annotated[
    int,
    typer.Option("--samples", help="Average this many vectors where --decode is sample.", min=1),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Print the result as one JSON value and nothing else on stdout; with a file name, "
        "write it there and print the usual text.",
        callback=writable,
        is_eager=True,
    ),
]
Teacher = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        help="Compare embeddings and feature maps with those of this network, such as onnx:FILE. "
        "May be repeated, where one network made the embedding and another the map.",
    ),
]
ClassMaps = Annotated[
    str | None,
    typer.Option(
        "--segmentation",
        help="Take class maps from this ONNX network, or from an .npz file of maps by photo id.",
        callback=present,
    ),
]
PhotoLimit = Annotated[
    int | None, typer.Option("--limit", help="Use at most this many photos.", min=2)
]
PhotoList = Annotated[
    Path,
    typer.Argument(
        help="The photos to read: a folder, or a list in a .jsonl or .parquet file.",
        callback=present,
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", help="Work with this many threads side by side.", min=1)
]


ENGINES = ("local", "ray")
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Work in this process (local), or in --workers processes on one machine or many "
        "(ray).",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Use the running Ray cluster at this address; without it one is started here.",
    ),
]
WorkerCpus = Annotated[
    float, typer.Option("--worker-cpus", help="Give each Ray worker this many CPUs.", min=0.01)
]
WorkerGpus = Annotated[
    float, typer.Option("--worker-gpus", help="Give each Ray worker this share of a GPU.", min=0)
]


def cluster_of(
    engine: str, address: str | None, workers: int, cpus: float, gpus: float
) -> Cluster | None:
    """Where Ray's workers run; None where the work is done in this process.

    Raises:
        ConfigError: there is no such engine, or an option of the other one
    """
    from fourm_lite.cluster import Cluster

    check_choice("--engine", engine, of=ENGINES)
    if engine == "ray":
        return Cluster(address, workers, cpus, gpus)
    if address is not None or gpus or cpus != 1:
        raise ConfigError("--address, --worker-cpus and --worker-gpus need --engine ray")
    return None


def pair(text: str, option: str) -> tuple[str, str]:
    """NAME=VALUE as its two halves."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"{option} expects NAME=VALUE, got {text!r}")
    return name, value


def numbers(texts: Sequence[str], option: str) -> dict[str, float]:
    """NAME=NUMBER, several times."""
    found = {}
    for text in texts:
        name, value = pair(text, option)
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"{option} expects a number for {name!r}, got {value!r}") from None
    return found


def counts(text: str, option: str, least: int = 1) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} expects numbers with commas, got {text!r}") from None
    if min(found) < least:
        raise ConfigError(f"{option} are at least {least}, got {text!r}")
    return found


def value_of(text: str) -> Any:
    """A path where there is such a file, a .npy file as its array, else the text itself."""
    try:
        path = Path(text).expanduser()
        is_file = len(text) < 4096 and path.is_file()
    except (OSError, ValueError, RuntimeError):
        return text
    if not is_file:
        return text
    if path.suffix.lower() == ".npy":
        from fourm_lite.reading.arrays import read_npy_file

        return read_npy_file(path)
    return path


def file_of(text: str, option: str) -> Path:
    """A file that is there."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise ConfigError(f"{option} expects a file, there is none at {text}")
    return path


def dtype_of(name: str | None) -> str | None:
    """What the weights are held as, checked before anything is opened."""
    if name is None:
        return None
    from fourm_lite.model.speed import precision_of

    return precision_of(name)


def tell_precision(dtype: str | None, model: str | Path | None, device: str | None = None) -> None:
    """Says what a precision changes in a 4M model's answers on this machine, the first time.

    It is measured once and kept; of models that read no photos nothing is said.
    """
    if dtype_of(dtype) in (None, "auto", "float32") or not model or ":" in str(model):
        return
    from fourm_lite.demo.examples import shipped_pictures
    from fourm_lite.evaluate.precision import measure_once

    found = measure_once(str(model), str(dtype), shipped_pictures, device=device)
    if found is not None:
        say(f"{dtype}: {found}", aside=True)


def open_reranker(name: str, device: str | None) -> PairReranker:
    """The network that --reranker names, on --device."""
    from fourm_lite.embedders.rerankers import load_reranker

    return load_reranker(name, device=device or "cpu")
