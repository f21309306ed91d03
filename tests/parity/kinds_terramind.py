"""Checks of TerraMind and of the tables of both forks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from caseinfo import CaseInfo
from kinds_aion import check_aion_table, same
from kinds_model import close
from torch import Tensor, nn

from fourm_lite import load_model
from fourm_lite.backbone.merged import MergedViT
from fourm_lite.embedders.pth import read_pth
from fourm_lite.embedders.terramind_files import convert_terramind
from fourm_lite.modalities.forks import BANDS, STATISTICS, TERRAMIND_MODALITIES, coords_text, key_of
from fourm_lite.model.fourm import FourM
from fourm_lite.model.likelihood import sequence_logits
from fourm_lite.pipeline.terramind import Chain, ChainOptions, ThinkingViT
from fourm_lite.sampling.passes import Encoder, Pass
from fourm_lite.sampling.sampler import Sampler

GREEDY = ChainOptions(temperature=0.0, top_p=0.0)


def folder_of(case: CaseInfo) -> Path:
    """The checkpoint as a folder of ours; a published .pt is converted."""
    entry = case.manifest["models"][case.info["model"]]
    folder = case.store.get(case.info["model"], entry)
    pickles = sorted(folder.glob("*.pt"))
    if not pickles:
        return folder
    target = case.store.folder / f"{case.info['model']}_converted"
    convert_terramind(read_pth(pickles[0]).weights, target, heads=entry["build"]["heads"])
    return target


def inputs_of(case: CaseInfo, names: Any) -> dict[str, Tensor]:
    drawn = case.info["procedural_inputs"]
    return {m: case.procedural(m) if m in drawn else case.tensors[f"in.{m}"].long() for m in names}


def check_vit(case: CaseInfo) -> None:
    info = case.info
    size = None if info["img_size"] == 224 else info["img_size"]
    model = MergedViT.from_pretrained(
        folder_of(case), info["names"], merge=info["merge_method"] or "none",
        bands=info["bands"], image_size=size,
    )  # fmt: skip
    if "in.missing_mod_token" in case.tensors:
        model.missing_mod_token = nn.Parameter(case.tensors["in.missing_mod_token"])
    for name in info["modalities"]:
        assert key_of(name) == info["names"][name]
    with torch.inference_mode():
        check_layers(case, model(inputs_of(case, info["input_order"])), info["layers"])


def check_layers(case: CaseInfo, outputs: list[Any], count: int) -> None:
    assert len(outputs) == count
    seen = {key for key in case.tensors if key.startswith("out.layer")}
    assert seen
    for key in seen:
        number, _, name = key.removeprefix("out.layer").partition(".")
        got = outputs[int(number)]
        close(got[name] if name else got, case.tensors[key], key)


def check_generate(case: CaseInfo) -> None:
    info = case.info
    options = ChainOptions(temperature=0.0, top_p=0.0, standardize=info["standardize"])
    chain = Chain(load_model(folder_of(case)), list(info["targets"]), options)
    inputs = inputs_of(case, info["names"])
    for name, key in info["targets"].items():
        assert key_of(name, "target") == key
    sampler, batch, plan = chain.prepared(inputs)
    sampler = Sampler(sampler.model, original=True)
    results = sampler.iterate(batch, plan, seed=0)
    batch = sampler._with_targets(batch, sampler.steps(batch, plan))
    for result in results:
        name = result.step.target
        ids, values = (case.tensors[f"out.{name}.top4_{part}"] for part in ("ids", "values"))
        logits = result.logits
        if sampler.model.modality(name).kind == "sequence":
            logits = text_logits(sampler.model, batch, name, result.ids)
        else:
            logits = logits.gather(1, result.candidates.argsort(1)[..., None].expand_as(logits))
        close(logits.gather(-1, ids.long()), values, f"{name} logits")
        batch = result.batch
    made = chain.tokens(inputs)
    for name, key in info["targets"].items():
        want = case.tensors[f"out.{key}.tokens"].flatten(1)
        same(made[name], want, key)


def text_logits(model: FourM, batch: Any, name: str, ids: Tensor) -> Tensor:
    start = batch[name].value[:, :1]
    with torch.inference_mode():
        context = Encoder(model, Sampler(model).marks)(batch, [Pass(1.0)])
        said = torch.cat([start, ids], dim=1)
        return sequence_logits(model, name, said[:, :-1], context)


def check_tim(case: CaseInfo) -> None:
    info, folder = case.info, folder_of(case)
    names = {**info["names"], **info["targets"]}
    chain = Chain(load_model(folder), list(info["targets"]), GREEDY, visible=info["chained"])
    backbone = MergedViT.from_pretrained(folder, names, merge=info["merge_method"] or "none")
    if info["own_encoder"]:
        tune(case, backbone)
    inputs = inputs_of(case, info["names"])
    for name, key in info["targets"].items():
        same(chain.tokens(inputs)[name], case.tensors[f"out.{key}.tokens"], key)
    with torch.inference_mode():
        check_layers(case, ThinkingViT(chain, backbone)(inputs), info["layers"])


def tune(case: CaseInfo, backbone: MergedViT) -> None:
    """The trained encoder of the note: w + 0.05 * rule."""
    seed = next(iter(case.info["procedural_inputs"].values()))["seed"]
    for name, parameter in backbone.vit.named_parameters():
        if name.startswith("encoder.") and not name.endswith("bias"):
            rule = {"shape": list(parameter.shape), "init": "uniform", "a": 1.0, "seed": seed}
            drawn = case.store.recipe.tensor_from_recipe(f"tuned:{name}", rule, 0, {})
            with torch.no_grad():
                parameter.copy_(parameter + 0.05 * torch.from_numpy(drawn))


def check_coords(case: CaseInfo) -> None:
    given = case.tensors["in.lon_lat"].tolist()
    assert [coords_text(lon, lat) for lon, lat in given] == case.info["strings"]


def check_table(case: CaseInfo) -> None:
    (check_aion_table if "codecs" in case.info else check_terramind_table)(case.info)


def check_terramind_table(info: dict[str, Any]) -> None:
    for name, facts in info["modalities"].items():
        entry = TERRAMIND_MODALITIES[name]
        found = {
            "id": entry.legacy_id,
            "type": "seq" if entry.kind == "sequence" else "img",
            "can_be_target": entry.is_target,
            "vocab_size": entry.vocab_size,
            "max_tokens": entry.max_tokens,
            "input_size": entry.image_size,
            "patch_size": entry.patch_size,
            "channels": entry.channels,
            "path": entry.path,
        }
        for key, value in facts.items():
            if key == "embedding" or (key == "max_tokens" and value is None):
                continue
            assert found[key] == value, f"{name}.{key}"
    assert {k: list(v) for k, v in BANDS.items()} == info["bands"]
    for version in ("v1", "v01"):
        for name in info[f"{version}_mean"]:
            held = STATISTICS[version][name]
            assert list(held.mean) == info[f"{version}_mean"][name]
            assert list(held.std) == info[f"{version}_std"][name]
    for name, key in info["input_names"].items():
        assert key_of(name) == key
    for name, key in info["output_names"].items():
        assert key_of(name, "target") == key


CHECKS = {
    "fork_table": check_table,
    "terramind_vit": check_vit,
    "terramind_generate": check_generate,
    "terramind_tim": check_tim,
    "terramind_coords": check_coords,
}
