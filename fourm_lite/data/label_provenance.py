"""What a folder of labels is made of: noted when it is begun, and compared when it goes on.

Unusual: a label notes its source in its own folder, so that labels can be added one by one; labels
that were made before sources were noted have none, and go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import remove_leftovers, write_json
from fourm_lite.io.locks import alone
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.photos.records import Record

if TYPE_CHECKING:
    from fourm_lite.data.pseudolabel import Labeller, LabelRun

RUN, SOURCE = "run.json", "source.json"
_PLAIN = (str, int, float, bool, type(None))
_SPEED = ("threads", "batch")


def claim(out: Path, records: Sequence[Record], run: LabelRun) -> None:
    """Notes what a folder of labels is made of.

    Raises:
        ConfigError: it was begun with other records, crops or seed
    """
    digest = hashlib.sha256("\n".join(r.id for r in records).encode()).hexdigest()
    mine = {"records": len(records), "ids_sha256": digest, "run": _plain(run)}
    path = out / RUN
    with alone(out, wait=True):
        remove_leftovers(out)
        theirs = read_note(path, begun=any(out.glob("*/shard-*.npz")))
        if theirs is None:
            write_json(path, mine)
        elif theirs != json.loads(json.dumps(mine)):
            raise ConfigError(
                f"{out} was begun with {theirs.get('records')} records and {theirs.get('run')}, "
                f"this run has {len(records)} and {mine['run']}; choose another folder"
            )


def read_note(path: Path, *, begun: bool) -> dict[str, Any] | None:
    """What a folder says it is made of; None where it says nothing yet.

    Args:
        path: the note, a JSON object
        begun: there is something beside it that it must tell of; else a damaged one says nothing

    Raises:
        ConfigError: it is damaged
    """
    if not path.is_file():
        return None
    try:
        return read_json_object(path)
    except FourMError as error:
        if not begun:
            return None
        raise ConfigError(
            f"{path}, which says what its folder is made of, is damaged ({error}); if you know "
            "that this run has the same data and settings, remove that file and start again; else "
            "choose another folder"
        ) from error


def _plain(run: LabelRun) -> Any:
    policy = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(run.policy).items()}
    return {**vars(run), "policy": policy}


def claim_labels(out: Path, labellers: Sequence[Labeller]) -> None:
    """Notes what makes each label, in its folder.

    Raises:
        ConfigError: a label was begun by another source or with other settings
    """
    sources = {name: source_of(la, name) for la in labellers for name in la.names}
    begun = {name for name in sources if any((out / name).glob("shard-*.npz"))}
    with alone(out, wait=True):
        for name, mine in sources.items():
            theirs = read_note(out / name / SOURCE, begun=name in begun)
            if theirs not in (None, mine):
                raise ConfigError(
                    f"the label {name!r} in {out} was made by {theirs}, now it would be by {mine}; "
                    "give it another name or choose another folder"
                )
        for name, mine in sources.items():
            if name not in begun:
                write_json(out / name / SOURCE, mine)
            remove_leftovers(out / name)


def source_of(labeller: Labeller, name: str) -> dict[str, Any]:
    """The kind of a labeller and what decides one of its labels: files by a hash, plain settings.

    What only decides the speed is left out.
    """
    told: dict[str, Any] = {"kind": type(labeller).__name__}
    if not is_dataclass(labeller):
        return told
    for entry in fields(labeller):
        value = getattr(labeller, entry.name)
        if isinstance(value, Path):
            told[entry.name] = value.name
            told[f"{entry.name}_sha256"] = _digest(value) if value.is_file() else ""
        elif isinstance(value, Mapping):
            told |= {entry.name: value[name]} if isinstance(value.get(name), str) else {}
        elif isinstance(value, _PLAIN) and entry.repr and entry.name not in _SPEED:
            told[entry.name] = value
    return told


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
