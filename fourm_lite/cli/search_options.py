"""What the verbs of search share: options, and how NAME=VALUE, numbers and dtypes are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fourm_lite.cli.words import Argument, Option
from fourm_lite.errors import ConfigError, suggest

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")

Texts = list[str] | None
IndexPath = Annotated[str, Argument("an index")]
AnyModel = Annotated[
    str, Option("--model", "-m", help="4M model (folder, name, hub id) or hf:..., onnx:...")
]
IndexModel = Annotated[
    str | None, Option("--model", "-m", help="By default the one that made the index.")
]
Gallery = Annotated[
    str,
    Option(
        "--gallery",
        help="Who embeds the photos: model, or a network: onnx:FILE, ...; dinov2, imagebind.",
    ),
]
Target = Annotated[
    str | None, Option("--target", help="Global embedding; the model's first by default.")
]
Decode = Annotated[str, Option("--decode", help="expected, argmax or sample.")]
Center = Annotated[
    bool, Option("--center/--no-center", help="Take a mean off, so that cosines tell more.")
]
Tokenizers = Annotated[
    list[str] | None,
    Option(
        "--tokenizers",
        help="In place of the model's own: NAME=SOURCE (folder, file, hub id), or a folder that "
        "holds one folder for each. Repeatable.",
    ),
]
TextTokenizer = Annotated[
    str | None, Option("--text-tokenizer", help="Text tokenizer file, or 4m.")
]
BatchSize = Annotated[int, Option("--batch-size", help="Items a forward pass.", min=1)]
Dtype = Annotated[str | None, Option("--dtype", help="Of the weights: float32, bfloat16, float16.")]
Device = Annotated[str | None, Option("--device", help="cpu, cuda, ...")]
Data = Annotated[Path, Option("--data", help="Folder with captions.jsonl.")]
Split = Annotated[str, Option("--split", help="Which lines of captions.jsonl.")]
Seed = Annotated[int, Option("--seed", help="Of what is sampled.")]
QuerySpread = Annotated[
    float | None, Option("--spread", help="Of queries: in place of the model's; 0 for none.")
]
Rerank = Annotated[
    int, Option("--rerank", help="Put so many of the first in order by likelihood.", min=0)
]
RerankWeights = Annotated[
    Texts, Option("--rerank-weight", help="cosine=, codes=, caption= or prior=NUMBER. Repeatable.")
]
RerankGiven = Annotated[
    str | None,
    Option("--rerank-given", help="What of a hit words are said from: codes, pixels or both."),
]
RerankerName = Annotated[
    str | None,
    Option("--reranker", help="Rerank by a cross-encoder of words and photos: hf:FOLDER_OR_ID."),
]
Samples = Annotated[int, Option("--samples", help="Vectors drawn with sample.", min=1)]
Json = Annotated[bool, Option("--json", help="Print one JSON value.")]
JsonFile = Annotated[Path | None, Option("--json", help="Write the report here; - prints it.")]

Teacher = Annotated[
    str | None,
    Option("--teacher", help="Network of embedding and feature map: onnx:FILE, ..."),
]
ClassMaps = Annotated[
    str | None, Option("--segmentation", help="Class maps: an ONNX network, or .npz by id.")
]
PhotoLimit = Annotated[int | None, Option("--limit", help="At most so many photos.", min=2)]


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


def dtype_of(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name."""
    if name is None:
        return None
    if name not in DTYPES:
        raise ConfigError(
            f"--dtype is one of {', '.join(DTYPES)}, got {name!r}.{suggest(name, DTYPES)}"
        )
    import torch

    found: torch.dtype = getattr(torch, name)
    return found
