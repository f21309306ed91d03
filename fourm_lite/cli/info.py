"""`fourm-lite info`: what a checkpoint is, read from its config and its header alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fourm_lite.cli.output import print_facts, print_json, print_table, say
from fourm_lite.cli.words import Argument, Option
from fourm_lite.io.checkpoint import Checkpoint, read
from fourm_lite.modalities.published import FOURM
from fourm_lite.modalities.spec import Modality

if TYPE_CHECKING:
    from fourm_lite.pipeline.belongings import Belonging


@dataclass(frozen=True)
class Description:
    """What a checkpoint is, and in whose words it is written."""

    kind: str
    format: str
    config: dict[str, Any]
    inputs: tuple[Modality, ...] = ()
    outputs: tuple[Modality, ...] = ()


def info(
    source: Annotated[str, Argument("a folder, a .safetensors file, a shipped name or a hub id")],
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Show what a checkpoint is: its kind, configuration, modalities and licence.

    Of a 4M model it names the tokenizers and embedding networks that belong to it, with licences.

    Raises:
        CheckpointError: nothing is there, or it is damaged
        ConfigError: its configuration is wrong
    """
    checkpoint = read(source)
    found = describe(checkpoint)
    parts = _belongings(source, checkpoint, found)
    facts = {
        "source": str(checkpoint.source),
        "kind": found.kind,
        "format": found.format,
        "licence": checkpoint.licence or _published_licence(source),
        **_sizes(checkpoint),
    }
    if as_json:
        names = {side: [m.name for m in getattr(found, side)] for side in ("inputs", "outputs")}
        print_json(
            {**facts, **names, "belongings": list(map(asdict, parts)), "config": found.config}
        )
        return
    print_facts({**facts, "licence": facts["licence"] or "not stated"})
    print_table(("config", "value"), _plain(found.config).items())
    if found.inputs or found.outputs:
        head = ("modality", "kind", "in", "out", "tokens", "vocabulary")
        print_table(head, _modality_rows(found))
    if parts:
        _tell(parts)


def _published_licence(source: str) -> str | None:
    """The licence of a name on the hub, where its files do not state one."""
    published = FOURM.named(source)
    return None if published is None else published.licence


def _belongings(source: str, checkpoint: Checkpoint, found: Description) -> list[Belonging]:
    from fourm_lite.pipeline.belongings import belongings

    return belongings(source, checkpoint) if found.kind == "fourm" else []


def _tell(parts: Sequence[Belonging]) -> None:
    """A line for each part, whole however narrow the terminal is."""
    say("belongs to it:")
    longest = max(len(part.name) for part in parts)
    for part in parts:
        where = part.source or "a .pth file alone: fourm-lite convert"
        size = "" if part.gigabytes is None else f", {part.gigabytes:g} GB"
        licence = part.licence or "licence not stated"
        say(f"  {part.kind:9}  {part.name:{longest}}  {where}{size}, {licence}")


def describe(checkpoint: Checkpoint) -> Description:
    """What a checkpoint is, by its config and the names of its tensors.

    Raises:
        ConfigError: the config is that of nothing known
    """
    config = checkpoint.config
    written_in = f"fourm_lite {config['format']}" if "format" in config else "ml-4m"
    if config.get("kind") == "fmvit":
        return _vit(checkpoint, written_in)
    if config.get("kind") == "fourm" or "domains_in" in config:
        return _model(checkpoint, written_in)
    return _tokenizer(checkpoint, written_in)


def _model(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.model.load import model_config

    config = model_config(checkpoint)
    # a file without a decoder is the encoder of a model, saved as a backbone
    kind = "fourm" if any(n.startswith("decoder.") for n in checkpoint.tensors) else "fmvit"
    return Description(kind, written_in, config.to_dict(), config.inputs, config.outputs)


def _vit(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.backbone.vit import ViTConfig

    return Description("fmvit", written_in, ViTConfig.from_dict(checkpoint.config).to_dict())


def _tokenizer(checkpoint: Checkpoint, written_in: str) -> Description:
    from fourm_lite.tokenization.vq.config import parse_config

    config = parse_config(checkpoint.config, checkpoint.tensors).to_dict()
    return Description(str(config["class"]), written_in, config)


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = checkpoint.tensors.values()
    dtypes = Counter(tensor.dtype for tensor in tensors)
    return {
        "tensors": len(tensors),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "bytes": sum(tensor.num_bytes for tensor in tensors),
        "dtypes": ", ".join(sorted(dtypes)),
    }


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what is shown elsewhere and without what is not set."""
    elsewhere = {"inputs", "outputs", "kind", "class", "format"}
    return {k: v for k, v in config.items() if k not in elsewhere and v is not None}


def _modality_rows(found: Description) -> list[tuple[Any, ...]]:
    inputs, outputs = set(found.inputs), set(found.outputs)
    every = dict.fromkeys((*found.inputs, *found.outputs))
    return [
        (m.name, m.kind, _tick(m in inputs), _tick(m in outputs), m.max_tokens, m.vocab_size or "")
        for m in every
    ]


def _tick(there: bool) -> str:
    return "yes" if there else ""
