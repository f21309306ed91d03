"""FourM: the masked multimodal encoder-decoder.

Attribute names are ml-4m's state-dict keys, so a published checkpoint loads strictly. Unusual: the
position vectors are added to the encoder's output a second time before the decoder reads it.

Source:
    4M (Mizrahi et al. 2023), 4M-21 (Bachmann et al. 2024)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import FourMError, check_choice
from fourm_lite.io.push import HubMixin
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.embeddings import ENCODERS, EncoderEmbedding, TokenDecoder, encoder_part
from fourm_lite.model.packing import Packed, PackedTargets, Part, pack, pack_targets, pad_front
from fourm_lite.nn.attention import Bias, Parts, blocked
from fourm_lite.nn.blocks import Block, BlockCache, Context, DecoderBlock, depth_rates
from fourm_lite.nn.device import threads_for
from fourm_lite.nn.layers import LayerNorm, draw_linear, project

if TYPE_CHECKING:
    from fourm_lite.modalities.spec import Modality
    from fourm_lite.model.likelihood import Scores


@dataclass(frozen=True)
class Encoded:
    """What the encoder gives.

    Shapes:
        output: float[B, N, D] after the last norm, with what convolutions see beside
        context: what the decoder reads, tokens float[B, N, D]
        packed: the tokens that went in
        inner: number of a block, from 1 -> float[B, N, D] after it, of `FourM.inner_blocks`
    """

    output: Tensor
    context: Context
    packed: Packed
    inner: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """Logits of one modality's targets, and the ids that they should give.

    Shapes:
        logits: float[n, V] over all valid targets of the batch, row by row
        ids: int64[n]
    """

    logits: Tensor
    ids: Tensor


class FourM(HubMixin, nn.Module):
    """Predicts the tokens of any modality from any others.

    Units:
        inner_blocks: the encoder blocks, from 1, whose outputs `Encoded` keeps
        family: of published models that it was opened from (`modalities.published`), kept by `save`
    """

    inner_blocks: frozenset[int] = frozenset()
    family: str | None = None

    def __init__(self, config: FourMConfig) -> None:
        super().__init__()
        self.config = config
        self.names = list(config.modalities)
        dim = config.dim
        self.encoder_embeddings = nn.ModuleDict(
            {m.name: ENCODERS[m.kind](m, dim) for m in config.inputs}
        )
        self.decoder_embeddings = nn.ModuleDict(
            {m.name: TokenDecoder(m, dim) for m in config.outputs}
        )
        encoder_rates, decoder_rates = _drop_path_rates(config)
        self.encoder = nn.ModuleList(Block(config.block, drop_path=r) for r in encoder_rates)
        self.encoder_norm = LayerNorm(dim, bias=config.norm_bias)
        self.decoder_proj_context = nn.Linear(dim, dim)
        self.decoder = nn.ModuleList(DecoderBlock(config.block, drop_path=r) for r in decoder_rates)
        self.decoder_norm = LayerNorm(dim, bias=config.norm_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, dim))
        self.tie()

    def init_weights(self) -> FourM:
        """Draws all weights from torch's generator, as for a model that is to be trained."""
        draw_linear(self)
        for embedding in (*self.encoder_embeddings.values(), *self.decoder_embeddings.values()):
            embedding.init_weights()  # type: ignore[operator]
        nn.init.normal_(self.mask_token, std=0.02)
        if self.config.num_register_tokens:
            nn.init.normal_(self.register_tokens, std=0.02)
        return self

    def tie(self) -> None:
        """Makes one tensor of what the config shares: modality vectors, tables and logits."""
        if self.config.tied_tables:
            for embedding in self.decoder_embeddings.values():
                if isinstance(embedding.to_logits, nn.Linear):  # rounded ones stand alone
                    embedding.token_emb.weight = embedding.to_logits.weight  # type: ignore[union-attr]
        if not self.config.share_modality_embeddings:
            return
        for name, embedding in self.decoder_embeddings.items():
            if name in self.encoder_embeddings:
                embedding.mod_emb = self.encoder_embeddings[name].mod_emb

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mask_token.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.mask_token.dtype

    def modality(self, name: str) -> Modality:
        """The entry of one of this model's modalities.

        Raises:
            UnknownNameError: the model does not have it
        """
        known = self.config.modalities
        check_choice("a modality of this model", name, of=sorted(known))
        return known[name]

    def can(self, inputs: Iterable[str], target: str) -> bool:
        """Whether the model reads all of `inputs` and predicts `target`."""
        inputs = [inputs] if isinstance(inputs, str) else inputs
        reads = all(name in self.encoder_embeddings for name in inputs)
        return reads and target in self.decoder_embeddings

    def encode(
        self, batch: TokenBatch, budget: int | None = None, *, batch_size: int | None = None
    ) -> Encoded:
        """Encodes what the batch gives.

        Modalities that give nothing are not embedded. Without a budget a row with no input at all
        has an empty context (the decoder adds nothing); with one it sees padding, as 4M's training
        does.

        Shapes:
            budget: tokens kept of each row, in the order of the batch's modalities
            batch_size: needed only for a batch without modalities
        """
        packed = self._pack_inputs(batch, budget, batch_size)
        if not packed.x.shape[1]:
            return Encoded(packed.x, Context(packed.x), packed)
        with threads_for(packed.valid.numel()):
            bias = _key_bias(packed.valid, packed.x.dtype)
            x, inner = self._through_blocks(packed.x + packed.pos, bias)
            return self._encoded(packed, bias, x, inner, trimmed=budget is None)

    def encode_beside(
        self, batches: Sequence[TokenBatch], *, batch_size: int | None = None
    ) -> list[Encoded]:
        """What `encode` gives of each batch; products see the tokens of all of them at once."""
        every = [self._pack_inputs(batch, None, batch_size) for batch in batches]
        with threads_for(sum(packed.valid.numel() for packed in every)):
            tokens = [packed.x + packed.pos for packed in every]
            parts = Parts.of(tokens, [_key_bias(p.valid, p.x.dtype) for p in every])
            x, inner = self._through_blocks(Parts.row(tokens), parts)
            split = {n: parts.split(one) for n, one in inner.items()}
            inners = [{n: one[i] for n, one in split.items()} for i in range(len(every))]
            each = zip(every, parts.biases, parts.split(x), inners, strict=True)
            return [self._encoded(*one, trimmed=True) for one in each]

    def _pack_inputs(self, batch: TokenBatch, budget: int | None, size: int | None) -> Packed:
        given = [name for name in batch if name in self.encoder_embeddings]
        used = [name for name in given if budget is not None or bool(batch[name].inputs.any())]
        if used:
            packed = pack([self._input_part(name, batch[name]) for name in used], budget)
        else:
            packed = self._empty(batch.size if size is None else size)
        registers = self.config.num_register_tokens
        return pad_front(packed, self.register_tokens) if registers else packed

    def _through_blocks(self, x: Tensor, bias: Bias) -> tuple[Tensor, dict[int, Tensor]]:
        """What leaves the last block, and what leaves those that are kept."""
        inner = {}
        for number, block in enumerate(self.encoder, start=1):
            x = self._call(block, x, bias)
            if number in self.inner_blocks:
                inner[number] = x
        return x, inner

    def _encoded(
        self,
        packed: Packed,
        bias: Tensor | None,
        x: Tensor,
        inner: Mapping[int, Tensor],
        *,
        trimmed: bool,
    ) -> Encoded:
        output = self.encoder_norm(x)
        if packed.beside is not None:
            output = output + packed.beside
        tokens = project(self.decoder_proj_context, output) + packed.pos
        present = packed.valid.any(dim=1) if trimmed and bias is not None else None
        if present is not None:
            present = None if bool(present.all()) else present[:, None, None]
        return Encoded(output, Context(tokens, bias, present), packed, inner)

    def _empty(self, size: int) -> Packed:
        shape = (size, 0)
        x = torch.zeros(*shape, self.config.dim, dtype=self.dtype, device=self.device)
        where = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return Packed(x, x, where.bool(), where, where)

    def _input_part(self, name: str, tokens: Tokens) -> Part:
        embedding: EncoderEmbedding = self.encoder_embeddings[name]  # type: ignore[assignment]
        return encoder_part(embedding, tokens, self.names.index(name))

    def pack_targets(
        self, batch: TokenBatch, budget: int | None = None, *, order: Sequence[str] | None = None
    ) -> PackedTargets:
        """The decoder's tokens for training: masks for grids, shifted tokens for sequences.

        Shapes:
            budget: tokens kept of each row
            order: names of the target modalities; the batch's own order by default
        """
        names = [n for n in (batch if order is None else order) if n in self.decoder_embeddings]
        if not names:
            raise FourMError(
                f"the batch {sorted(batch)} holds none of the model's targets "
                f"{sorted(self.decoder_embeddings)}"
            )
        return pack_targets(
            [self._target_part(name, batch[name]) for name in names],
            budget,
            causal=self.config.decoder_causal_mask,
            separate=self.config.decoder_sep_mask,
        )

    def _target_part(self, name: str, tokens: Tokens) -> Part:
        embedding = self.target(name)
        entry = embedding.modality
        pos = embedding.positions(tokens.targets, entry.decoder_rows)
        groups = _default_groups(entry, tokens) if tokens.groups is None else tokens.groups
        index = self.names.index(name)
        if entry.kind == "grid":
            x = self.mask_token.expand(tokens.size, tokens.length, -1)
            return Part(x, pos, tokens.targets, index, tokens.value, groups)
        # Teacher forcing: every target predicts the next one.
        x = embedding.token_emb(tokens.value[:, :-1])
        keep = tokens.targets[:, :-1] & tokens.targets[:, 1:]
        return Part(x, pos[:, :-1], keep, index, tokens.value[:, 1:], groups[:, :-1])

    def decode(self, targets: PackedTargets, encoded: Encoded) -> Tensor:
        """Runs the decoder over packed targets: float[B, M, D]."""
        bias = blocked(targets.attend, targets.x.dtype)[:, None]
        return self.run_decoder(targets.x + targets.pos, encoded.context, bias)

    def run_decoder(
        self,
        y: Tensor,
        context: Context,
        bias: Tensor | None = None,
        caches: Sequence[BlockCache] | None = None,
    ) -> Tensor:
        """The decoder's blocks and norm over float[B, M, D]; with caches, y holds only new
        tokens.
        """
        with threads_for(y.shape[0] * y.shape[1]):
            for i, block in enumerate(self.decoder):
                if caches is None:
                    y = self._call(block, y, context, bias)
                else:
                    y = block(y, context, bias, caches[i])
            return self.decoder_norm(y)

    def logits(self, y: Tensor, modality: str) -> Tensor:
        """Scores of the vocabulary: float[..., D] -> float[..., V]."""
        return project(self.target(modality).to_logits, y)

    def target(self, name: str) -> TokenDecoder:
        """The decoder's embedding of a modality.

        Raises:
            FourMError: the model does not predict it
        """
        self.modality(name)
        if name not in self.decoder_embeddings:
            raise FourMError(
                f"this model does not predict '{name}'; "
                f"it predicts {sorted(self.decoder_embeddings)}"
            )
        return self.decoder_embeddings[name]  # type: ignore[return-value]

    def score(self, target: str, candidates: Tensor, given: TokenBatch, **options: Any) -> Scores:
        """How likely candidates int64[K, L] of a target are: see `fourm_lite.model.likelihood`."""
        from fourm_lite.model.likelihood import score

        return score(self, target, candidates, given, **options)

    def forward(
        self,
        batch: TokenBatch,
        input_budget: int,
        target_budget: int,
        *,
        order: Sequence[str] | None = None,
    ) -> dict[str, Prediction]:
        """Predicts the targets of a batch, teacher-forced, as in training.

        Shapes:
            returns: for every target modality logits float[n, V] and ids int64[n]
        """
        return self.predictions(self.encode(batch, input_budget), batch, target_budget, order)

    def predictions(
        self,
        encoded: Encoded,
        batch: TokenBatch,
        target_budget: int,
        order: Sequence[str] | None = None,
    ) -> dict[str, Prediction]:
        """The decoder's half of `forward`."""
        targets = self.pack_targets(batch, target_budget, order=order)
        y = self.decode(targets, encoded)
        return {
            name: self._prediction(name, y, targets)
            for name in (batch if order is None else order)
            if name in self.decoder_embeddings
        }

    def _prediction(self, name: str, y: Tensor, targets: PackedTargets) -> Prediction:
        rows = (targets.modality == self.names.index(name)) & targets.valid
        return Prediction(self.logits(y[rows], name), targets.ids[rows])

    def _call(self, block: nn.Module, *args: object) -> Tensor:
        if self.config.use_act_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def save(self, folder: str | Path, *, extra: Mapping[str, object] | None = None) -> Path:
        """Writes config.json and model.safetensors, atomically; returns the place.

        A name that ends in .safetensors gives one file that holds both.

        `extra` adds keys to the config under "extra": what the model was trained on, its licence.
        """
        from fourm_lite.io.checkpoint import write, write_single

        config = self.config.to_dict()
        family = {} if self.family is None else {"family": self.family}
        if told := {**family, **(extra or {})}:
            config["extra"] = told
        is_file = Path(folder).suffix == ".safetensors"
        return (write_single if is_file else write)(folder, config, self.saved_state())

    def saved_state(self) -> dict[str, Tensor]:
        """The tensors that `save` writes."""
        return dict(self.state_dict())


def _key_bias(valid: Tensor, dtype: torch.dtype) -> Tensor | None:
    """bool[B, N] -> additive mask float[B, 1, 1, N]; None when nothing is blocked."""
    return None if bool(valid.all()) else blocked(valid, dtype)[:, None, None, :]


def _default_groups(entry: Modality, tokens: Tokens) -> Tensor:
    """All targets of a grid see each other; those of a sequence see the earlier ones."""
    if entry.kind == "sequence":
        return tokens.targets.to(torch.int64)
    first = (tokens.targets.cumsum(dim=1) == 1) & tokens.targets
    return torch.where(first, tokens.targets.sum(dim=1, keepdim=True), 0)


def _drop_path_rates(config: FourMConfig) -> tuple[list[float], list[float]]:
    n, m = config.encoder_depth, config.decoder_depth
    if config.shared_drop_path:
        rates = depth_rates(config.drop_path_rate_encoder, n + m)
        return rates[:n], rates[n:]
    encoder, decoder = config.drop_path_rate_encoder, config.drop_path_rate_decoder
    return depth_rates(encoder, n), depth_rates(decoder, m)
