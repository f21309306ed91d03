"""Decoding many tokens of a grid at once: MaskGIT (most confident first) and ROAR (random order).

Both decode a set of undecided positions from mask tokens and write some of them. MaskGIT offers all
undecided positions and keeps the most confident; ROAR draws the positions first and keeps them all.

Source:
    MaskGIT (Chang et al. 2022); ROAR is 4M's random-order autoregression (Mizrahi et al. 2023)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourm_lite.model.fourm import FourM
from fourm_lite.model.packing import take_first
from fourm_lite.nn.attention import blocked
from fourm_lite.nn.blocks import Context
from fourm_lite.sampling.passes import Joined
from fourm_lite.sampling.state import Job, Written


def decode_positions(
    model: FourM, name: str, positions: Tensor, valid: Tensor, context: Context
) -> Tensor:
    """Decoder outputs at mask tokens.

    Shapes:
        positions: int64[B, m]; valid: bool[B, m], False where a row is padded
        returns: float[B, m, D]
    """
    embedding = model.target(name)
    y = model.mask_token + embedding.at(positions)
    bias = None
    if not bool(valid.all()):
        y = y * valid[..., None].to(y.dtype)
        bias = blocked(valid, y.dtype)[:, None, None, :]
    return model.run_decoder(y, context, bias)


def maskgit(job: Job) -> Written:
    """Decodes all undecided positions and writes the most confident ones."""
    targets = job.tokens.targets
    positions = take_first(targets, int(targets.sum(dim=1).max()))
    valid = targets.gather(1, positions)
    logits = _logits(job, positions, valid)
    drawn = job.randomness.draw(logits, job.step, valid)
    confidence = drawn.confidence.masked_fill(~valid, -1.0)
    k = min(_count(job), positions.shape[1])
    best = confidence.topk(k, dim=1).indices
    return _write(job, positions, logits, drawn.ids, confidence, best, valid)


def roar(job: Job) -> Written:
    """Draws undecided positions at random, decodes them and writes them all."""
    targets = job.tokens.targets
    order = job.randomness.orders(*targets.shape).to(targets.device)
    k = min(_count(job), int(targets.sum(dim=1).max()))
    positions = (order + (~targets) * 2.0).argsort(dim=1, stable=True)[:, :k]
    valid = targets.gather(1, positions)
    logits = _logits(job, positions, valid)
    drawn = job.randomness.draw(logits, job.step, valid)
    every = torch.arange(k, device=targets.device).expand(targets.shape[0], -1)
    return _write(job, positions, logits, drawn.ids, drawn.confidence, every, valid)


PARALLEL = {"maskgit": maskgit, "roar": roar}
"""The schemes of grids by name; their defaults stand in `target`."""


def _logits(job: Job, positions: Tensor, valid: Tensor) -> Tensor:
    model, name, context = job.model, job.name, job.context
    if isinstance(context, Joined) and context.is_padded and _many(positions):
        outputs = [decode_positions(model, name, positions, valid, c) for c in context.parts]
        return job.guided(torch.cat(outputs))
    p = len(job.passes)
    y = decode_positions(model, name, positions.repeat(p, 1), valid.repeat(p, 1), context)
    return job.guided(y)


def _many(positions: Tensor) -> bool:
    """Whether one pass alone keeps the device busy, so that joining passes only adds padding."""
    return positions.numel() >= (64 if positions.device.type == "cpu" else 4096)


def _count(job: Job) -> int:
    count = job.step.num_tokens
    return job.tokens.length if count is None else max(int(count), 0)


def _write(
    job: Job,
    candidates: Tensor,
    logits: Tensor,
    ids: Tensor,
    confidence: Tensor,
    chosen: Tensor,
    valid: Tensor,
) -> Written:
    positions, new = candidates.gather(1, chosen), ids.gather(1, chosen)
    wanted = valid.gather(1, chosen)
    return Written(
        tokens=job.tokens.reveal(positions, new, wanted),
        positions=positions,
        ids=new.masked_fill(~wanted, -1),
        confidence=confidence.gather(1, chosen),
        candidates=candidates,
        logits=logits,
    )
