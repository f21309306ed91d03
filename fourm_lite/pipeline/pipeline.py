"""FourMPipeline: a model with its tokenizers, from raw values to raw values.

One item is a dict, `{"rgb": "photo.jpg", "caption": "a dog"}`; several items are a list of dicts,
which need not hold the same modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.embedders.load import Spec
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.families.masked import fork_of
from fourm_lite.io.checkpoint import Source, read
from fourm_lite.modalities.plain_items import as_items, is_one_item
from fourm_lite.modalities.published import FAMILIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import load_model
from fourm_lite.pipeline.caption_vectors import all_unknown, beside, vector_of
from fourm_lite.pipeline.embedding import (
    THINKS_OF_NOTHING,
    Decode,
    EmbeddingPlan,
    embed_batch,
    embed_pooled,
    global_embedding,
    pooled_of,
    sample_vectors,
)
from fourm_lite.pipeline.given import Given, read_given
from fourm_lite.pipeline.outputs import Generated, Writer, mean_confidence
from fourm_lite.pipeline.readers import (
    Reader,
    collate,
    find_modality,
    read_entries,
    vq_entries,
    whole_text,
)
from fourm_lite.pipeline.teacher import embed_by_teacher, open_teacher, teacher_target
from fourm_lite.pipeline.together import OnStep, generated, thoughtful
from fourm_lite.pipeline.tokenizers import Tokenizers, check_names
from fourm_lite.progress import Progress
from fourm_lite.sampling.passes import LEGACY_MARKS
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Seed, item_seeds
from fourm_lite.tokenization.words.spans import Marks

Inputs = Mapping[str, Any]
Items = Inputs | str | Path | Sequence[Inputs | str | Path]


@dataclass(frozen=True)
class FourMPipeline:
    """Raw values in, raw values out.

    Example:
        >>> pipe = FourMPipeline.from_pretrained("mini")  # doctest: +SKIP
        >>> pipe.generate({"rgb": "photo.jpg"}, ["caption"])["caption"].text  # doctest: +SKIP
    """

    model: FourM
    tokenizers: Tokenizers
    folder: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(
        cls,
        model: Source | FourM,
        tokenizers: Given = None,
        *,
        device: torch.device | str | None = None,
        dtype: str | torch.dtype | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> FourMPipeline:
        """A model with its tokenizers, each of which is opened when it is first needed.

        Args:
            model: a folder, file, hub id, shipped name, an open checkpoint or model
            tokenizers: name -> source (a folder, file, hub id or an open tokenizer), a folder with
                one sub-folder each, "name=source", or a list of these; "text" is the text
                tokenizer ("4m": the original's). What is not named comes from the model's config,
                from `tokenizers/` beside it, and for models of the original's layout from the
                published ones.
            device: of the model; see `load_model`
            dtype: of the model's weights; see `load_model`
            inputs: names of the modalities to read; all by default
            outputs: names of the modalities to predict; all by default

        Raises:
            CheckpointError, ConfigError: as `load_model`
        """
        if isinstance(model, FourM):
            check_names(tokenizers, model.config.modalities.values())
            family = FAMILIES.get(model.family or "")
            return cls(model, Tokenizers(read_given(tokenizers), family=family, device=device))
        checkpoint = read(model)
        found = Tokenizers.of_model(model, checkpoint, tokenizers, device=device)
        opened = load_model(checkpoint, inputs=inputs, outputs=outputs, dtype=dtype, device=device)
        check_names(tokenizers, opened.config.modalities.values())
        return cls(opened, found, checkpoint.folder, checkpoint.extra)

    @property
    def marks(self) -> Marks:
        """Special ids of the model's texts; those of published models are known without a file."""
        return self.tokenizers.text().marks if self.tokenizers.names_text else LEGACY_MARKS

    def require(self, inputs: Items, plan: Plan | Sequence[Target] = ()) -> dict[str, Path]:
        """Sees to it that the tokenizers of a request are here, and fetches those that are not.

        Args:
            inputs: one item, or a list of items
            plan: what will be generated

        Returns:
            name -> file or folder of each

        Raises:
            NotFetchedError: some are not here and cannot be fetched
        """
        given = {m.name: m for m in self.model.config.inputs}
        shown = self._targets(plan)
        read = read_entries(as_items(inputs), given)
        entries = [*vq_entries(read, shown=False), *vq_entries(shown, shown=True)]
        texts = [m for m in (*read, *shown) if m.kind == "sequence"]
        text = any(self.tokenizers.speaks(m) for m in texts)
        return self.tokenizers.require(entries, text=text)

    def _targets(self, plan: Plan | Sequence[Target]) -> list[Modality]:
        """What a plan makes; a target that the model lacks is told by the sampler, with others."""
        outputs = {m.name: m for m in self.model.config.outputs}
        targets = plan.targets if isinstance(plan, Plan) else plan
        return [outputs[t.modality] for t in targets if t.modality in outputs]

    def read(self, inputs: Items) -> TokenBatch:
        """Raw values as a batch of given tokens.

        Raises:
            FourMError: nothing is given, an item is no dict, or a value is not of its modality
        """
        items = [self._read_item(item) for item in self._items(inputs)]
        return collate(items).to(self.model.device)

    def _items(self, inputs: Items) -> list[Inputs]:
        items = as_items(inputs)
        if not items or not all(items):
            raise FourMError("nothing is given: every item needs at least one modality")
        return items

    def _reader(self) -> Reader:
        return Reader(self.tokenizers, self.model.config.positions == "interpolated")

    def _read_item(self, item: Inputs) -> dict[str, Tokens]:
        reader, entries = self._reader(), {m.name: m for m in self.model.config.inputs}
        given = {find_modality(key, entries, role="input"): v for key, v in item.items()}
        further = beside(source := self.tokenizers.source, given, entries)
        # Words that the vocabulary lacks are left to the sentence encoder that has heard them
        heard = {entries[name].raw for name in further}
        out: dict[str, Tokens] = {}
        for name, value in given.items():
            is_text = name in heard and entries[name].kind == "sequence"
            if not is_text or not all_unknown(value, self.tokenizers.text()):
                out[name] = reader.read(entries[name], value)
        return out | {n: vector_of(source, entries[n], value) for n, value in further.items()}

    def plan(
        self, targets: Sequence[str | Target] | str | Target, plan: Plan | None = None
    ) -> Plan:
        """The plan for some targets; where `plan` has a target for one, that is taken."""
        entries = {m.name: m for m in self.model.config.outputs}
        wanted = [targets] if isinstance(targets, (str, Target)) else list(targets)
        known = {t.modality: t for t in plan.targets} if plan is not None else {}
        drawn = fork_of(self.model.config.modalities).drawn
        chosen = []
        for target in wanted:
            if isinstance(target, Target):
                chosen.append(target)
                continue
            name = find_modality(target, entries, role="target")
            usual = Target(name, **drawn.get(entries[name].kind, {}))
            chosen.append(known.get(name, usual))
        if not wanted and plan is not None:
            return plan
        return Plan(tuple(chosen)) if plan is None else replace(plan, targets=tuple(chosen))

    def generate(
        self,
        inputs: Items,
        targets: Sequence[str | Target] | str | Target = (),
        *,
        plan: Plan | str | Path | None = None,
        think: Sequence[str | Target] = (),
        seed: Seed = 0,
        on_step: OnStep | None = None,
        on_token: Progress | None = None,
        allow_tokens: bool = False,
    ) -> Any:
        """Generates the targets, one after the other, each seeing those before it.

        Args:
            inputs: one item, or a list of items
            targets: names, or `Target`s that say how; by default those of the plan
            plan: a plan, a TOML file, or the name of a shipped one
            think: what is made before, read by the targets and not given back
            seed: one for all items, or one an item; an item's result depends on nothing else
            on_step: told of each step
            on_token: told of each token while a text grows
            allow_tokens: give tokens with a `reason` where a tokenizer cannot be fetched

        Returns:
            name -> `Generated` for one item, a list of such dicts for a list; what has no
            tokenizer at all is tokens, with a `reason`

        Raises:
            FourMError: the request cannot be carried out, or a tokenizer is not here and cannot be
                fetched; before any work
        """
        opened = Plan.from_toml(plan) if isinstance(plan, (str, Path)) else plan
        if opened is None and not targets:
            raise FourMError("name at least one target, or give a plan")
        chosen = self.plan(targets, opened)
        self.require(inputs, () if allow_tokens else chosen)
        items = [self.read(item) for item in self._items(inputs)]
        if not allow_tokens:
            self.tokenizers.open(vq_entries(self._targets(chosen), shown=True))
        whole = chosen
        if think:
            whole = thoughtful(self.plan(list(think)), chosen, self.model.config)
        outputs, seeds = [dict[str, Generated]() for _ in items], item_seeds(seed, len(items))
        told = {"on_step": on_step, "on_token": on_token}
        for part in generated(self.model, items, whole, seeds, self.marks, **told):  # type: ignore[arg-type]
            own = replace(self, model=part.model)
            names = [name for name in part.names if name in chosen.names]
            drawn = [seeds[place] for place in part.places]
            made = own.write(part.batch, names, part.confidence, drawn, allow_tokens=allow_tokens)
            for place, values in zip(part.places, made, strict=True):
                outputs[place] = values
        return outputs[0] if is_one_item(inputs) else outputs

    def write(
        self,
        batch: TokenBatch,
        names: Sequence[str],
        confidence: Mapping[str, list[Tensor]] | None = None,
        seed: Seed = 0,
        *,
        allow_tokens: bool = False,
    ) -> list[dict[str, Generated]]:
        """Known tokens of a batch as values and pictures, a dict for each item."""
        writer = Writer(self.tokenizers, allow_tokens)
        means = {name: mean_confidence(steps) for name, steps in (confidence or {}).items()}
        out: list[dict[str, Generated]] = []
        for i, own in enumerate(item_seeds(seed, batch.size)):
            item = {}
            for name in names:
                tokens = batch[name]
                ids = tokens.value[i][tokens.inputs[i]]
                sure = means[name][i] if name in means else None
                item[name] = writer.write(self.model.modality(name), ids, sure, own)
            out.append(item)
        return out

    def score(
        self, target: Mapping[str, Any], given: Items, *, method: str = "one_pass"
    ) -> npt.NDArray[np.float32]:
        """Log-probability per token of candidates for one target, given other values.

        Args:
            target: one modality -> a value, or a list of candidate values
            given: one item, or a list of B items
            method: "one_pass", or the exact "chain" rule (grids)

        Shapes:
            returns: float32[B, K], natural logarithm, mean over the candidate's tokens

        Raises:
            ConfigError: no such method
            FourMError: several targets, or a value is not of its modality
        """
        if len(target) != 1:
            raise FourMError(f"score() takes one target at a time, got {sorted(target)}")
        ((key, values),) = target.items()
        entries = {m.name: m for m in self.model.config.outputs}
        name = find_modality(key, entries, role="target")
        candidates = list(values) if isinstance(values, list) else [values]
        entry, reader = entries[name], self._reader()
        tokens = [reader.read(entry, value) for value in candidates]
        if entry.kind == "sequence":
            tokens = [whole_text(t, self.marks) for t in tokens]
        batch = collate([{name: t} for t in tokens])[name]
        scores = self.model.score(
            name, batch.value, self.read(given), valid=batch.inputs, method=method
        )
        return scores.mean.cpu().numpy()

    def embed(
        self,
        inputs: Items,
        *,
        target: str | None = None,
        decode: Decode = "expected",
        batch_size: int = 32,
        steps: int = 1,
        samples: int = 1,
        seed: Seed = 0,
        teacher: Spec | None = None,
        think: Sequence[str | Target] = (),
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Unit vectors of any subset of modalities, in the space of an embedding network.

        Of a model that predicts no global embedding (AION-1, TerraMind) it is the mean over the
        tokens of its encoder, which its users take.

        Args:
            inputs: one item, or a list of items, which need not hold the same modalities
            target: the global embedding to predict; by default the model's only or first one
            decode: "expected" averages the code vectors under the predicted distribution,
                "argmax" takes the likeliest codes, "sample" draws them
            batch_size: items embedded together; the result does not depend on it
            steps: forward passes; later ones see the codes of earlier ones
            samples: with "sample": vectors drawn and averaged
            seed: one for all items, or one an item
            teacher: the network that the target was made of ("onnx:FILE", ..., an embedder, or of
                published models "dinov2", "imagebind", "dinov2=FOLDER"): its own vectors of the
                items' pictures, in the same space, instead of predicted ones
            think: what is generated first and read with the rest, where the mean is taken
            progress: called with (items done, items in all)

        Shapes:
            returns: float32[N, E], or [E] for one item

        Raises:
            FourMError: an item is no dict, a value is not of its modality, or no such target
        """
        one = is_one_item(inputs)
        items = as_items(inputs)
        if not items:
            raise FourMError("nothing to embed: the list of items is empty")
        family = self.tokenizers.family
        seeds = item_seeds(seed, len(items))
        if target is None and teacher is None and pooled_of(self.model.config) is not None:
            self.require(items)
            first = self.plan(list(think)) if think else None
            starts = range(0, len(items), batch_size)
            batches = ([self.read(i) for i in items[s : s + batch_size]] for s in starts)
            out = embed_pooled(self.model, batches, first, seeds, self.marks, progress)
            return out[0] if one else out
        if think:
            raise ConfigError(THINKS_OF_NOTHING)
        if teacher is not None:
            target = teacher_target(teacher, target, self.model.config.outputs, family)
        entry = self.embedding_target(target)
        self.require(items if teacher is None else ())
        plan = EmbeddingPlan(entry, self.tokenizers.vq(entry), decode, steps, samples)
        network = None if teacher is None else open_teacher(teacher, family)
        vectors = []
        for start in range(0, len(items), batch_size):
            part = slice(start, start + batch_size)
            if network is None:
                batch = self.read(items[part])
                vectors.append(embed_batch(self.model, batch, plan, seeds[part], self.marks))
            else:
                width = plan.tokenizer.config.n_channels
                vectors.append(embed_by_teacher(network, items[part], start, entry, width))
            if progress is not None:
                progress(start + len(vectors[-1]), len(items))
        out = np.concatenate(vectors)
        return out[0] if one else out

    def embed_samples(
        self, inputs: Items, samples: int, *, target: str | None = None, seed: Seed = 0
    ) -> npt.NDArray[np.float32]:
        """Several sampled unit vectors an item; `dispersion` tells how much they differ.

        Shapes:
            returns: float32[N, samples, E]
        """
        batch, entry = self.read(inputs), self.embedding_target(target)
        seeds = item_seeds(seed, batch.size)
        plan = EmbeddingPlan(entry, self.tokenizers.vq(entry), "sample", 1, samples)
        vectors = sample_vectors(self.model, batch, plan, seeds, self.marks)
        return functional.normalize(vectors, dim=-1).cpu().numpy()

    def embedding_target(self, target: str | None = None) -> Any:
        """The entry of a global embedding, never of a map: the named one, or the model's first."""
        return global_embedding(self.model.config.outputs, self.tokenizers, target)
