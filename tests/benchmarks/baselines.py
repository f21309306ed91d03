"""The rivals of `mini` at caption <-> photo, on a teacher's frozen features, in one table.

    OMP_NUM_THREADS=1 nice -n 10 python tests/benchmarks/baselines.py --split val --json OUT.json
    ... --teacher timm:ENCODER --sentences sentence:ENCODER --model mini   # stronger eyes and words

1. Ridge regression from the TF-IDF weights of a caption's words, and with `--sentences` from its
   sentence vector too, to the teacher's embedding; its alpha is chosen on `val`. One row with
   centred cosine, one without centring, and some to vectors that are whitened in part
   (`whitening`), as the ones are that `mini` learns from texts.
2. A contrastive dual encoder: a 2-layer transformer over words, a linear map of the embedding,
   InfoNCE, 6 epochs. Its settings were chosen on `val` by `--tune`, which prints every trial.
3. Linear contrastive heads on the same features, as `joint:` spaces have them: 512 numbers, 6
   passes over the captions.
4. With `--model`: a 4M model in one pass, its own gallery.

All learn from the split `train` alone and are measured as `fourm-lite evaluate retrieval` measures
`mini` with the teacher's gallery: every caption is a query, the centre is the mean of the training
photos. The library uses none of this.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fourm_lite.data.text_labels import whitening
from fourm_lite.embedders.joint_space import JointHeads, WordWeights
from fourm_lite.embedders.load import load_embedder
from fourm_lite.evaluate.caption_sets import CaptionPack
from fourm_lite.evaluate.retrieval import evaluate_retrieval
from fourm_lite.io.files import remove_leftovers, replacing, write_json
from fourm_lite.metrics.ranking import caption_retrieval
from fourm_lite.search.spaces import open_space
from fourm_lite.training.joint_heads import (
    JointSpaceRecipe,
    JointSpaceTask,
    Pairs,
    PairStream,
    SpaceRecipe,
)
from fourm_lite.training.loop import TrainConfig
from fourm_lite.unit import unit

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ALPHAS = (0.3, 1.0, 3.0, 10.0)
SPREADS = (0.3, 0.8)
TRIALS = {
    "width": (256, 512),
    "rate": (5e-4, 1e-3, 2e-3),
    "batch": (256, 512),
    "dropout": (0.1, 0.3),
}


@dataclass(frozen=True)
class Part:
    """A split with the teacher's embeddings.

    Shapes:
        images: float32[G, E], raw
    """

    pack: CaptionPack
    images: np.ndarray


def read_part(data: Path, split: str, teacher: str, cache: Path) -> Part:
    """A split; its embeddings are computed once and kept in `cache`."""
    pack = CaptionPack.read(data, split)
    who = hashlib.sha256(teacher.encode()).hexdigest()[:8]
    path = cache / f"baselines_{split}_{len(pack.photos)}_{who}.npy"
    if path.is_file():
        return Part(pack, np.load(path, allow_pickle=False))
    embedder = load_embedder(teacher)
    parts = [
        embedder.embed_image(pictures, normalize=False) for pictures in pack.read_by("pictures", 32)
    ]
    remove_leftovers(cache)
    with replacing(path) as draft, draft.open("wb") as file:
        np.save(file, np.concatenate(parts))
    return Part(pack, np.concatenate(parts))


def measure(texts: Any, images: Any, part: Part, protocol: dict[str, Any]) -> dict[str, Any]:
    return caption_retrieval(texts, images, part.pack.owner, protocol=protocol)


def figures(report: dict[str, Any], way: str = "text_to_image") -> list[float]:
    row = report[way]
    return [round(100 * row[f"R@{k}"], 1) for k in (1, 5, 10)] + [row["median_rank"]]


@dataclass
class Features:
    """What a caption is told by: TF-IDF weights of its words, and perhaps its sentence vector."""

    words: Any
    sentences: Any = None
    cache: Path = Path()

    def vectors(self, captions: tuple[str, ...]) -> np.ndarray | None:
        """Sentence vectors float32[T, S], computed once; None without an encoder."""
        if self.sentences is None:
            return None
        told = "\n".join([self.sentences.name, *captions])
        path = self.cache / f"sentences_{hashlib.sha256(told.encode()).hexdigest()[:16]}.npy"
        if not path.is_file():
            with replacing(path) as draft, draft.open("wb") as file:
                np.save(file, self.sentences.embed_text(captions))
        return np.load(path, allow_pickle=False)

    def transform(self, captions: tuple[str, ...]) -> Any:
        """A sparse matrix float32[T, V + S]."""
        from scipy.sparse import csr_matrix, hstack

        weights = self.words.transform(captions).astype(np.float32)
        vectors = self.vectors(captions)
        return weights if vectors is None else hstack([weights, csr_matrix(vectors)], "csr")


@dataclass(frozen=True)
class Ridge:
    """A linear map of what a caption is told by to an embedding.

    Shapes:
        weights: float32[V, E]; words_mean: float32[1, V]; bias, centre: float32[E]
    """

    words: Any
    weights: np.ndarray
    words_mean: np.ndarray
    bias: np.ndarray
    centre: np.ndarray

    def report(self, part: Part, facts: dict[str, Any]) -> dict[str, Any]:
        """Its figures; photos have the centre taken off, which may be zero."""
        x = self.words.transform(part.pack.captions)
        texts = x @ self.weights - self.words_mean @ self.weights + self.bias
        return measure(texts, part.images - self.centre, part, facts)


def ridge(train: Part, val: Part, asked: Part, words: Features) -> dict[str, Any]:
    """Ridge regressions with and without centring, each with the alpha that is best on `val`."""
    from scipy.linalg import cho_factor, cho_solve

    x = words.transform(train.pack.captions)
    x_mean = np.asarray(x.mean(axis=0), np.float32)
    gram = (x.T @ x).toarray() - x.shape[0] * x_mean.T @ x_mean
    mean = train.images.mean(axis=0)
    centred = unit(train.images - mean)
    goals = {  # name -> (what is predicted of each photo, what photos are centred by)
        "ridge": (centred, mean),
        "ridge, not centred": (train.images, np.zeros_like(mean)),
    } | {f"ridge, spread {p}": (centred @ whitening(centred, p), mean) for p in SPREADS}
    y = np.concatenate([goal for goal, _ in goals.values()], axis=1)[train.pack.owner]
    right = x.T @ y - x_mean.T @ y.sum(axis=0, keepdims=True)
    solved = {a: cho_solve(cho_factor(gram + a * np.eye(len(gram), dtype=np.float32)), right)
              for a in ALPHAS}  # fmt: skip
    found = {}
    for (name, (_, centre)), columns in zip(
        goals.items(), np.split(np.arange(y.shape[1]), len(goals)), strict=True
    ):
        bias = y[:, columns].mean(axis=0)
        maps = {a: Ridge(words, w[:, columns], x_mean, bias, centre) for a, w in solved.items()}
        on_val = {a: m.report(val, {})["text_to_image"]["R@10"] for a, m in maps.items()}
        best = max(on_val, key=lambda a: on_val[a])
        facts = {"split": asked.pack.split, "alpha": best, "val R@10 by alpha": on_val}
        found[name] = maps[best].report(asked, facts)
    return found


def heads(train: Part, asked: Part, words: Features, seed: int = 0) -> dict[str, Any]:
    """Linear contrastive heads, trained as those of a `joint:` space are, settings of the issue."""
    recipe = JointSpaceRecipe(
        joint_space=SpaceRecipe(image="", captions=Path(), labels=Path(), dropout=0.1),
        train=TrainConfig(out=Path()),
    )
    pairs = _pairs(train, words)
    known = WordWeights.of(pairs.captions, recipe.joint_space.least)
    width = 0 if pairs.sentences is None else pairs.sentences.shape[1]
    model = JointHeads(pairs.images.shape[-1], width, len(known.words), recipe.joint_space.width)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.image.measure(pairs.images[:, 0])
    if model.text is not None:
        model.text.measure(pairs.sentences)
    task = JointSpaceTask(model, known, recipe)
    stream = PairStream(pairs, known, recipe.joint_space.batch_size, seed)
    steps = 6 * len(pairs.captions) // stream.size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    torch.manual_seed(seed)
    for step in range(steps):
        loss = task.step(model, stream.batch(step), torch.Generator()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    others = _pairs(asked, words)
    with torch.no_grad():
        texts = model.embed_texts(others.sentences, known.bags(others.captions))
        images = model.embed_images(others.images[:, 0])
    return measure(texts.numpy(), images.numpy(), asked, {"split": asked.pack.split})


def _pairs(part: Part, words: Features) -> Pairs:
    counts = np.bincount(part.pack.owner, minlength=len(part.images))
    vectors = words.vectors(part.pack.captions)
    return Pairs(
        torch.from_numpy(part.images)[:, None],
        part.pack.captions,
        None if vectors is None else torch.from_numpy(vectors),
        torch.from_numpy(np.concatenate([[0], counts.cumsum()])),
    )


def model_report(model: str, data: Path, split: str) -> dict[str, Any]:
    """A 4M model in one pass, with the gallery that it makes from pixels."""
    space = open_space(model)
    return evaluate_retrieval(space, data, split, rerank=0)


@dataclass(frozen=True)
class Settings:
    """Of the dual encoder; the defaults are what `tune` chose, from another rate."""

    width: int = 256
    rate: float = 5e-4
    batch: int = 256
    dropout: float = 0.1
    epochs: int = 6
    seed: int = 0


class DualEncoder(nn.Module):
    """A transformer of two layers over words beside a linear map of embeddings."""

    def __init__(self, vocabulary: int, features: int, s: Settings, longest: int = 40) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, s.width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(longest, s.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            s.width, 4, 2 * s.width, s.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(s.width)
        self.text = nn.Linear(s.width, s.width, bias=False)
        self.image = nn.Linear(features, s.width)
        self.drop = nn.Dropout(s.dropout)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.words.weight, std=0.02)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """int64[B, L] -> float[B, D], unit length; texts of like length go together."""
        lengths = (ids > 0).sum(dim=1)
        order = lengths.argsort()
        parts = [self._texts(ids[p, : int(lengths[p].max())]) for p in order.chunk(4)]
        return torch.cat(parts)[order.argsort()]

    def _texts(self, ids: Tensor) -> Tensor:
        empty = ids == 0
        x = self.drop(self.words(ids) + self.places[: ids.shape[1]])
        x = self.norm(self.layers(x, src_key_padding_mask=empty))
        kept = (~empty)[..., None]
        return functional.normalize(self.text((x * kept).sum(1) / kept.sum(1)), dim=-1)

    def embed_images(self, features: Tensor) -> Tensor:
        """float[B, E] -> float[B, D], unit length."""
        return functional.normalize(self.image(self.drop(features)), dim=-1)


@dataclass(frozen=True)
class Words:
    """A vocabulary of whole words; 0 is padding, 1 any rare word."""

    ids: dict[str, int]

    @classmethod
    def of(cls, captions: tuple[str, ...], rare: int = 3) -> Words:
        counts = Counter(w for c in captions for w in c.lower().split())
        kept = sorted(w for w, n in counts.items() if n >= rare)
        return cls({w: i for i, w in enumerate(kept, 2)})

    def __call__(self, captions: tuple[str, ...], longest: int = 40) -> Tensor:
        rows = [[self.ids.get(w, 1) for w in c.lower().split()][:longest] or [1] for c in captions]
        return nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)


def train_dual(
    train: Part, s: Settings, device: str = "cpu"
) -> tuple[DualEncoder, Words, Tensor, Tensor]:
    """A trained dual encoder with what makes its inputs."""
    torch.manual_seed(s.seed)
    rng = np.random.default_rng(s.seed)
    words = Words.of(train.pack.captions)
    ids, owner = words(train.pack.captions).to(device), train.pack.owner
    raw = torch.from_numpy(train.images).to(device)
    mean, spread = raw.mean(0), raw.std(0).mean()
    features = (raw - mean) / spread
    model = DualEncoder(len(words.ids) + 2, raw.shape[1], s).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.rate, weight_decay=0.05)
    batches = [b for _ in range(s.epochs) for b in _epoch(owner, s.batch, rng)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, s.rate, len(batches), pct_start=0.1)
    for rows in batches:
        texts = model.embed_texts(ids[rows])
        logits = (
            model.scale.exp().clamp(max=100) * texts @ model.embed_images(features[owner[rows]]).T
        )
        right = torch.arange(len(rows), device=device)
        loss = (
            functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)
        ) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.cpu().eval(), words, mean.cpu(), spread.cpu()


def _epoch(owner: np.ndarray, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Every caption once, and no photo twice in a batch: it would be its own wrong answer."""
    order = rng.permutation(len(owner))
    turn = np.zeros(len(owner), np.int64)  # of a photo's captions, the how many-th this is
    seen: Counter[int] = Counter()
    for row in order:
        turn[row] = seen[int(owner[row])]
        seen[int(owner[row])] += 1
    rows = [r for t in range(turn.max() + 1) for r in _batches(order[turn[order] == t], batch)]
    return [rows[i] for i in rng.permutation(len(rows))]


def _batches(rows: np.ndarray, batch: int) -> list[np.ndarray]:
    return [r for r in np.split(rows, range(batch, len(rows), batch)) if len(r) > batch // 2]


@torch.inference_mode()
def dual_report(
    trained: tuple[DualEncoder, Words, Tensor, Tensor], part: Part, s: Settings
) -> dict[str, Any]:
    model, words, mean, spread = trained
    texts = torch.cat([model.embed_texts(i) for i in words(part.pack.captions).split(256)])
    images = model.embed_images((torch.from_numpy(part.images) - mean) / spread)
    facts = {"split": part.pack.split, "score": "cosine", "settings": asdict(s)}
    return measure(texts.numpy(), images.numpy(), part, facts)


def tune(train: Part, val: Part, device: str, kept: Path) -> Settings:
    """One setting after the other, the best value on `val` kept; every trial is printed.

    Trials lie in the file `kept`, a line each, so that a run that was stopped goes on.
    """
    best, best_sum = Settings(rate=1e-3), -1.0
    lines = kept.read_text().splitlines() if kept.is_file() else []
    done = {Settings(**row["settings"]): row["val"] for row in map(json.loads, lines)}
    for name, values in itertools.chain(TRIALS.items(), [("epochs", (4, 6))]):
        start = best
        for value in values:
            s = replace(start, **{name: value})
            if s == start and best_sum >= 0:
                continue
            if s not in done:
                done[s] = figures(dual_report(train_dual(train, s, device), val, s))
                with kept.open("a") as file:
                    file.write(json.dumps({"settings": asdict(s), "val": done[s]}) + "\n")
            found = done[s]
            print("trial", asdict(s), found, flush=True)
            if sum(found[:3]) > best_sum:
                best, best_sum = s, sum(found[:3])
    return best


def _fitted_words(train: Part) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=3, token_pattern=r"(?u)\b\w+\b")
    return words.fit(train.pack.captions)


def main() -> None:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    words.add_argument("--data", type=Path, default=SHARED / "captions")
    words.add_argument("--teacher", default=f"onnx:{SHARED / 'teacher/mobilenet_v2_imagenet.onnx'}")
    words.add_argument("--split", default="val", choices=("val", "test"))
    words.add_argument("--cache", type=Path, default=Path("/tmp/fourm_baselines"))
    words.add_argument(
        "--tune", action="store_true", help="try settings of the dual encoder on val"
    )
    words.add_argument("--only", choices=("ridge", "dual", "heads"), help="one of them")
    words.add_argument("--sentences", help="sentence:FOLDER, for the ridge and the heads")
    words.add_argument("--model", help="a 4M model, measured beside them")
    words.add_argument("--device", default="cpu", help="where the dual encoder is trained")
    words.add_argument("--json", type=Path)
    args = words.parse_args()
    start = time.perf_counter()
    train, val, asked = (
        read_part(args.data, split, args.teacher, args.cache)
        for split in ("train", "val", args.split)
    )
    print(f"embeddings {time.perf_counter() - start:.0f} s", flush=True)
    encoder = load_embedder(args.sentences) if args.sentences else None
    told = Features(_fitted_words(train), encoder, args.cache)
    reports = ridge(train, val, asked, told) if args.only in (None, "ridge") else {}
    if args.only in (None, "heads"):
        reports["contrastive heads"] = heads(train, asked, told)
    if args.model:
        reports[args.model] = model_report(args.model, args.data, args.split)
    if args.only in (None, "dual"):
        kept = args.cache / "dual_trials.jsonl"
        settings = tune(train, val, args.device, kept) if args.tune else Settings()
        reports["dual encoder"] = dual_report(
            train_dual(train, settings, args.device), asked, settings
        )
    for name, report in reports.items():
        print(f"{name:20} {figures(report)}  back {figures(report, 'image_to_text')}")
    print(f"{args.split}: {time.perf_counter() - start:.0f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, reports)


if __name__ == "__main__":
    main()
