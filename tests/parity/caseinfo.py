"""One golden case as the checks see it, and the checkpoints that the cases run on.

The cases are found in the folder that ``FOURM_GOLDEN`` names (default
``../shared/golden/public``), through its ``manifest.json``. Nothing here knows a case, a model or
a kind by name.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SHARED_GOLDEN = ROOT.parent / "shared" / "golden"


def golden_folder() -> Path:
    """The folder of cases; it need not exist."""
    return Path(os.environ.get("FOURM_GOLDEN") or SHARED_GOLDEN / "public").absolute()


def golden_root(folder: Path) -> Path:
    """The folder that holds ``recipe.py``: the parent of the cases, else the shared one."""
    return folder.parent if (folder.parent / "recipe.py").is_file() else SHARED_GOLDEN


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class CheckpointStore:
    """Writes the checkpoints that are given as recipes, each once while it stays in the store.

    The largest recipe is over 1 GB and all together are 5 GB, so the least recently used go first.
    """

    folder: Path
    recipe: ModuleType
    golden: Path
    limit: int = 2 * 2**30
    written: OrderedDict[str, Path] = field(default_factory=OrderedDict)

    def get(self, name: str, entry: dict[str, Any]) -> Path:
        """A hub-layout folder (config.json, model.safetensors) of the model."""
        if "checkpoint_dir" in entry:
            return self.golden / entry["checkpoint_dir"]
        if name not in self.written:
            # a recipe beside the cases writes the files that the original tool reads
            if "folder" in entry:
                self.written[name] = self._materialize(name, self.golden / entry["folder"])
            else:
                self.written[name] = self._write(name, self.golden / entry["weights_recipe"])
        self.written.move_to_end(name)
        self._make_room()
        return self.written[name]

    def _materialize(self, name: str, model: Path) -> Path:
        target = self.folder / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # recipes leave files open
            self.recipe.materialize(str(model), str(target))
            gc.collect()
        return target

    def _write(self, name: str, weights_file: Path) -> Path:
        # recipe.materialize would also write the single-file layout: twice the disk for nothing
        shared = self.golden / "shared.safetensors"
        stored = load_arrays(shared) if shared.is_file() else {}
        state = self.recipe.build_state(read_json(weights_file), stored)
        target = self.folder / name
        target.mkdir(parents=True)
        shutil.copyfile(weights_file.parent / "config.json", target / "config.json")
        save_arrays(state, target / "model.safetensors", metadata={"format": "pt"})
        return target

    def _make_room(self) -> None:
        while len(self.written) > 1 and sum(map(_size, self.written.values())) > self.limit:
            _, oldest = self.written.popitem(last=False)
            shutil.rmtree(oldest)


def open_store(folder: Path, golden: Path) -> CheckpointStore:
    """A store below `folder` for the models of the manifest in `golden`."""
    return CheckpointStore(folder, _load_recipe(_recipe_of(golden)), golden)


@dataclass(frozen=True)
class CaseInfo:
    """A case of the manifest with everything that its check may read.

    ``case`` is its manifest entry, ``info`` its JSON file, ``tensors`` its safetensors file; the
    last two are empty where the case has no such file.
    """

    folder: Path
    name: str
    manifest: dict[str, Any] = field(repr=False)
    info: dict[str, Any] = field(repr=False)
    tensors: dict[str, torch.Tensor] = field(repr=False)
    store: CheckpointStore = field(repr=False)

    @property
    def case(self) -> dict[str, Any]:
        """The manifest entry."""
        return self.manifest["cases"][self.name]

    @property
    def golden_root(self) -> Path:
        """The folder of ``recipe.py`` and ``text_tokenizer_4m_wordpiece_30k.json``."""
        return golden_root(self.folder)

    def checkpoint(self, model_name: str | None = None) -> tuple[dict[str, Any], Path]:
        """Config and hub-layout folder of a model of the manifest (default: the case's own)."""
        name = model_name or self.info["model"]
        folder = self.store.get(name, self.manifest["models"][name])
        return read_json(folder / "config.json"), folder

    def folder_of(self, model_name: str | None = None) -> Path:
        """The folder of a model's files as its own tool writes them."""
        name = model_name or self.info["model"]
        return self.store.get(name, self.manifest["models"][name])

    def close(self, got: Any, key: str) -> None:
        """Agreement with an output of the case, within the tolerance of its manifest entry."""
        want, limits = self.tensors[key], self.case["tolerance"]
        found = torch.as_tensor(got).to(want.dtype)
        assert found.shape == want.shape, f"{key}: {list(found.shape)}, not {list(want.shape)}"
        torch.testing.assert_close(found, want, atol=limits["atol"], rtol=limits["rtol"], msg=None)

    def procedural(self, key: str) -> torch.Tensor:
        """The input that ``info["procedural_inputs"][key]`` describes, float32.

        Without an init rule the first rows are stored, as float16, in ``in.<key>_head``; ``rows``
        asks for zero rows along dimension 1 up to that number.
        """
        entry = self.info["procedural_inputs"][key]
        if "init" in entry:
            array = self.store.recipe.tensor_from_recipe(entry["key"], entry, 0, {})
            value = torch.from_numpy(array)
        else:
            value = self.tensors[f"in.{key}_head"].float()
        if "rows" in entry:
            missing = entry["rows"] - value.shape[1]
            value = F.pad(value, (0, 0) * (value.ndim - 2) + (0, missing))
        return value


def case_names(golden: Path, manifest: dict[str, Any]) -> Iterable[str]:
    """Names of the manifest's cases, in its order."""
    if not manifest["cases"]:
        raise ValueError(f"{golden}/manifest.json lists no case")
    return manifest["cases"].keys()


def open_case(
    folder: Path, manifest: dict[str, Any], name: str, store: CheckpointStore
) -> CaseInfo:
    """The case with its files read."""
    files = manifest["cases"][name]["files"]
    info = read_json(folder / files["info"]) if "info" in files else {}
    tensors = load_file(folder / files["tensors"]) if "tensors" in files else {}
    return CaseInfo(folder, name, manifest, info, tensors, store)


def _recipe_of(golden: Path) -> Path:
    """A recipe beside the cases comes first, the shared one second."""
    own = sorted(golden.glob("*recipe.py"))
    return own[0] if own else golden_root(golden) / "recipe.py"


def _load_recipe(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))
