"""Whatever a file says, opening it ends in a model or in one of our errors, soon, and nothing else.

Hypothesis bends good checkpoints: bytes, headers, metadata, configs, indices.
"""

import json
import os
import re
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_model

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import FourMError
from fourm_lite.io.checkpoint import read
from fourm_lite.io.ml4m import FM_NAMES
from fourm_lite.io.weights_file import TensorInfo
from fourm_lite.io.writing import encode_header, write_file
from fourm_lite.model.load import load_model
from fourm_lite.tokenization.load import load_tokenizer

SECONDS, BYTES = 1.0, 400e6
EXAMPLES = os.environ.get("FOURM_FUZZ")  # a number: that many new examples, by hand
FUZZ = settings(
    max_examples=int(EXAMPLES or 25),
    derandomize=EXAMPLES is None,
    deadline=None,  # seconds are measured below, in processor time
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EVIL = [
    "__import__('os').system('true')", "!!python/object/apply:os.system ['true']", "{{7*7}}",
    "${jndi:ldap://x}", "None", "[]", "['rgb@16']", "1e400", "9" * 400, "-1", "nan", "\x00", "../x",
    "@" * 3000,
]  # fmt: skip
NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 7, 512, 10**6, 10**9, 2**31, 2**63, 10**40, 0.5, 1e308, 1e-320]
)
SCALARS = st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=8)
SCALARS |= st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(EVIL)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)
RAN: list[str] = []


def _listen(event, _args):
    if event in ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class", "socket.connect"):
        RAN.append(event)


sys.addaudithook(_listen)


def peak():
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024


@contextmanager
def harmless(folder):
    """Only our errors come out; no time, memory or files go."""
    files, before, start = sorted(folder.rglob("*")), peak(), time.process_time()
    RAN.clear()
    with suppress(FourMError):
        yield
    assert time.process_time() - start < SECONDS
    assert peak() - before < BYTES
    assert sorted(folder.rglob("*")) == files
    assert not RAN


def bent(data, table, known=()):
    """A table with some values or keys replaced, dropped or added, at some depth."""
    out = json.loads(json.dumps(table))
    for _ in range(data.draw(st.integers(1, 3))):
        spot, keys = out, [out]
        while True:
            inner = [k for k in _keys(spot) if _keys(spot[k])]
            if not inner or data.draw(st.booleans()):
                break
            spot = spot[data.draw(st.sampled_from(inner))]
            keys.append(spot)
        names = list(_keys(spot))
        action = data.draw(st.sampled_from(["set", "set", "set", "drop", "add"]))
        if action == "add" and isinstance(spot, dict):
            spot[data.draw(st.sampled_from([*known, "new", *EVIL]))] = data.draw(VALUES)
        elif names and action == "drop":
            del spot[data.draw(st.sampled_from(names))]
        elif names:
            spot[data.draw(st.sampled_from(names))] = data.draw(VALUES)
    return out


def _keys(value):
    if isinstance(value, dict):
        return list(value)
    return range(len(value)) if isinstance(value, list) else []


def ml4m_table():
    config = tiny_config("swiglu")
    table = {key: getattr(config, key) for key in FM_NAMES if not key.startswith("domains")}
    # names that no table knows: the tensors tell what they are
    return table | {
        "domains_in": [f"x_{m.name}" for m in config.inputs],
        "domains_out": [f"x_{m.name}" for m in config.outputs],
    }


def fork_weights():
    state = tiny_model("swiglu").state_dict()
    prefix = re.compile(r"^((?:en|de)coder_embeddings\.)")
    return {prefix.sub(r"\1x_", name): value for name, value in state.items()}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folders with good checkpoints: ours, ml-4m's, a ViT's."""
    place = tmp_path_factory.mktemp("good")
    tiny_model().save(place / "ours")
    (place / "theirs").mkdir()
    (place / "theirs" / "config.json").write_text(json.dumps(ml4m_table()))
    write_file(place / "theirs" / "model.safetensors", fork_weights(), metadata=None)
    for folder in ("ours", "theirs"):
        load_model(place / folder)  # also warms imports up
    open_vit(place / "ours").save(place / "vit")
    return place


def open_all(source):
    """Opens as whatever it may be; each may succeed or tell one of our errors."""
    for opener in (lambda place: read(place).load(), load_model, open_vit):
        with suppress(FourMError):
            opener(source)


def open_vit(source):
    return FMViT.from_pretrained(source, num_classes=2)


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("kind", ["ours", "theirs", "vit"])
def test_a_bent_config_does_no_harm(good, tmp_path, kind, data):
    table = json.loads((good / kind / "config.json").read_text())
    write_once(tmp_path / "model.safetensors", (good / kind / "model.safetensors").read_bytes())
    text = json.dumps(bent(data, table, FM_NAMES))
    (tmp_path / "config.json").write_text(text)

    with harmless(tmp_path):
        open_all(tmp_path)


@FUZZ
@given(data=st.data())
def test_bent_metadata_does_no_harm(tmp_path, data):
    table = {key: str(value) for key, value in ml4m_table().items()}
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*table, "config", "new", "format"]))
        table[key] = data.draw(
            st.sampled_from(EVIL) | st.text(max_size=30) | VALUES.map(str) | VALUES.map(json.dumps)
        )
    safe = {k: v.encode("utf-8", "replace").decode() for k, v in table.items()}
    write_file(tmp_path / "single.safetensors", {"w": torch.zeros(2)}, metadata=safe)

    with harmless(tmp_path):
        open_all(tmp_path / "single.safetensors")


@FUZZ
@given(data=st.data())
def test_bent_bytes_do_no_harm(good, tmp_path, data):
    whole = bytearray((good / "ours" / "model.safetensors").read_bytes())
    write_once(tmp_path / "config.json", (good / "ours" / "config.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 4000) | st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop"])):
            case "flip":
                whole[min(at, len(whole) - 1)] = data.draw(st.integers(0, 255))
            case "cut":
                del whole[max(at, 1) :]
            case "insert":
                whole[at:at] = data.draw(st.binary(max_size=9))
            case "drop":
                del whole[at : at + data.draw(st.integers(1, 9))]
        whole = whole or bytearray(b"x")
    (tmp_path / "model.safetensors").write_bytes(whole)

    with harmless(tmp_path):
        open_all(tmp_path)


@FUZZ
@given(data=st.data())
def test_a_bent_header_does_no_harm(good, tmp_path, raw, data):
    whole = (good / "ours" / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = bent(data, json.loads(whole[8 : 8 + length]))
    write_once(tmp_path / "config.json", (good / "ours" / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(raw(header, whole[8 + length :]))

    with harmless(tmp_path):
        open_all(tmp_path)


@FUZZ
@given(data=st.data())
def test_a_bent_index_does_no_harm(good, tmp_path, data):
    names = list(read(good / "ours").tensors)
    write_once(tmp_path / "config.json", (good / "ours" / "config.json").read_bytes())
    write_once(tmp_path / "a.safetensors", (good / "ours" / "model.safetensors").read_bytes())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(bent(data, index)))

    with harmless(tmp_path):
        open_all(tmp_path)


@pytest.fixture(scope="module")
def tokenizers(golden, tmp_path_factory):
    """Folders with tokenizers in the shapes of the golden ones: zeros that take no disk."""
    place = tmp_path_factory.mktemp("tokenizers")
    smallest: dict[tuple[str, str], tuple[int, Path, dict]] = {}  # one of each sort
    for source in sorted((golden / "models").iterdir()):
        told = json.loads((source / "weights.json").read_text())
        config = json.loads((source / "config.json").read_text())
        if told["class"] in ("VQVAE", "DiVAE"):
            infos = {n: TensorInfo(tuple(t["shape"]), "F32") for n, t in told["tensors"].items()}
            found = (sum(info.num_bytes for info in infos.values()), source, infos)
            sort = (told["class"], str(config.get("quant_type")))
            smallest[sort] = min(found, smallest.get(sort, found), key=lambda entry: entry[0])
    for size, source, infos in smallest.values():
        (place / source.name).mkdir()
        with (place / source.name / "model.safetensors").open("wb") as file:
            file.write(encode_header(infos, {}))
            file.truncate(file.tell() + size)
        config = (source / "config.json").read_text()
        (place / source.name / "config.json").write_text(config)
        load_tokenizer(place / source.name)  # warms imports up
    return place


@FUZZ
@given(data=st.data())
def test_a_bent_tokenizer_config_does_no_harm(tokenizers, data):
    names = sorted(folder.name for folder in tokenizers.iterdir())
    folder = tokenizers / data.draw(st.sampled_from(names))
    table = json.loads((folder / "config.json").read_text())
    inner = folder / "bent"
    inner.mkdir(exist_ok=True)
    if not (inner / "model.safetensors").exists():
        (inner / "model.safetensors").symlink_to(folder / "model.safetensors")
    (inner / "config.json").write_text(json.dumps(bent(data, table)))

    with harmless(inner):
        load_tokenizer(inner)


def write_once(path, content):
    if not path.exists():
        path.write_bytes(content)


@pytest.mark.parametrize("opener", [load_model, load_tokenizer, open_vit])
@pytest.mark.parametrize("key", ["dim", "encoder_depth", "mlp_ratio", "image_size", "patch_size"])
def test_a_billion_in_a_config_costs_nothing(good, tmp_path, opener, key):
    for kind in ("ours", "theirs"):
        table = json.loads((good / kind / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**table, key: 10**9}))
        (tmp_path / "model.safetensors").write_bytes(
            (good / kind / "model.safetensors").read_bytes()
        )

        with harmless(tmp_path):
            opener(tmp_path)


def test_weights_that_are_integers_are_told(tmp_path):
    tiny_model().save(tmp_path)
    state = {n: v.to(torch.int32) for n, v in tiny_model().state_dict().items()}
    write_file(tmp_path / "model.safetensors", state, metadata=None)

    with pytest.raises(FourMError, match=r"floating-point.*I32"):
        load_model(tmp_path)
