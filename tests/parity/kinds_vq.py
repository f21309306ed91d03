"""Checks of VQ tokenizers, their training step, diffusion decoders and losses.

A case may store parts of a big tensor: its first samples, every 4th row and column, every 4th
channel. Where the case does not say which, the shapes do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from caseinfo import CaseInfo
from torch import Tensor

from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vq.config import parse_config
from fourm_lite.tokenization.vq.diffusion import NoiseSchedule, alphas_cumprod, timesteps_of
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.losses import LOSSES

STRIDE = 4


def close(got: Tensor, want: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Agreement to `tolerance` of the tensor's scale, NaN and infinity included."""
    assert got.shape == want.shape, f"{what}: {list(got.shape)} instead of {list(want.shape)}"
    got, want = got.float(), want.float()
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{what}: not finite elsewhere"
    assert torch.equal(got[~finite].nan_to_num(), want[~finite].nan_to_num()), what
    error = (got - want)[finite].abs().max().item() if finite.any() else 0.0
    scale = max(want[finite].abs().max().item(), 1e-3) if finite.any() else 1.0
    assert error <= tolerance * scale, f"{what}: off by {error:.2e} at scale {scale:.2e}"


def same_tokens(got: Tensor, want: Tensor) -> None:
    assert got.dtype == torch.int64
    assert got.shape == want.shape, f"tokens {list(got.shape)} instead of {list(want.shape)}"
    assert torch.equal(got, want.long()), f"{int((got != want.long()).sum())} tokens differ"


def opened(case: CaseInfo) -> VQTokenizer:
    return load_tokenizer(case.checkpoint()[1])


def value_in(case: CaseInfo, name: str = "x") -> Tensor:
    if name in case.info.get("procedural_inputs", {}):
        return case.procedural(name)
    stored = case.tensors[f"in.{name}"]
    return stored if stored.is_floating_point() else stored.long()


def stored_part(full: Tensor, want: Tensor) -> Tensor:
    """The part of a decoded tensor that a case stores: first samples, every 4th row and column."""
    part = full[: want.shape[0]]
    return part if part.shape == want.shape else part[..., ::STRIDE, ::STRIDE]


def check_vqvae(case: CaseInfo) -> None:
    tokenizer, x, want = opened(case), value_in(case), dict(case.tensors)
    want.pop("in.x", None)
    tokens = want.pop("out.tokens")

    same_tokens(tokenizer.tokenize(x), tokens)
    with torch.no_grad():
        quantized = tokenizer.encode(x)
        recon = tokenizer.decode(quantized.latents) if tokenizer.config.has_decoder else None
        latents = tokenizer.latents(x)
    same_tokens(quantized.tokens, tokens)
    found = {"out.latents": latents, "out.quant": quantized.latents, "out.recon": recon}
    found["out.tokens_to_embedding"] = tokenizer.lookup(tokens.long())
    if recon is not None:
        found["out.recon_every4"] = recon[:, ::STRIDE]
        found["out.decode_tokens"] = tokenizer.detokenize(tokens.long())
        check_flat(tokenizer, x, found["out.decode_tokens"])
    for key, value in want.items():
        assert key in found, f"no check for {key}"
        close(stored_part(found[key], value), value, key)
    check_counts(case, quantized.tokens, quantized.loss)


def check_counts(case: CaseInfo, tokens: Tensor, loss: Tensor) -> None:
    known = {"model", "procedural_inputs", "x_shape", "note", "code_loss", "n_tokens_used"}
    assert not set(case.info) - known, f"unchecked: {sorted(set(case.info) - known)}"
    if "n_tokens_used" in case.info:
        assert tokens.unique().numel() == case.info["n_tokens_used"]
    if "code_loss" in case.info:
        assert loss.item() == case.info["code_loss"]


def check_flat(tokenizer: VQTokenizer, x: Tensor, decoded: Tensor) -> None:
    """Tokens in the form of a 4M model decode to the same values."""
    flat = tokenizer.tokenize_flat(x)
    grid = tuple(decoded.shape[-2:]) if decoded.shape[-2:] == (1, 1) else None
    size = tokenizer.tokenize(x).shape[-2:]
    again = tokenizer.detokenize(flat, grid=grid or tuple(size))
    close(again.reshape(decoded.shape), decoded, "decoding of flat tokens")


def check_training(case: CaseInfo) -> None:
    want, x = dict(case.tensors), value_in(case)
    want.pop("in.x", None)
    assert set(case.info) <= {"model", "note", "loss"}
    assert case.info["loss"] == "mse + code_loss"
    tokenizer = opened(case).train()
    step = 0
    while any(key.startswith(f"step{step}.") for key in want):
        result = tokenizer(x)
        tokenizer.zero_grad()
        (F.mse_loss(result.output, x) + result.quantized.loss).backward()
        found = {"recon": result.output.detach(), "code_loss": result.quantized.loss.detach()[None]}
        found |= {
            f"grad.{n}": p.grad for n, p in tokenizer.named_parameters() if p.grad is not None
        }
        found |= {f"codebook.{n}": b for n, b in tokenizer.quantize._codebook.named_buffers()}
        for key in [k for k in want if k.startswith(f"step{step}.")]:
            close(found[key.removeprefix(f"step{step}.")], want.pop(key), key)
        step += 1
    assert step > 0
    assert not want, f"unchecked: {sorted(want)}"


def check_divae(case: CaseInfo) -> None:
    tokenizer, x, want = opened(case), value_in(case), dict(case.tensors)
    info = case.info
    same_tokens(tokenizer.tokenize(x), want.pop("out.tokens"))
    quant = want.pop("out.quant")
    with torch.no_grad():
        close(tokenizer.encode(x).latents, quant, "quant")
        check_denoiser(tokenizer, value_in(case, "noised"), quant, want)
    tokens = tokenizer.tokenize(x)
    for i, run in enumerate(info["ddim_runs"]):
        noise, image = want.pop(f"run{i}.noise"), want.pop(f"run{i}.image")
        spacing = f"original-{run['mode']}"
        total = tokenizer.config.num_train_timesteps
        assert timesteps_of(run["steps"], total, spacing) == run["timesteps"]
        got = tokenizer.detokenize(tokens, noise=noise, steps=run["steps"], spacing=spacing)
        if run["finite"]:
            close(got, image, f"run {i} {spacing}")
        else:  # epsilon without signal: the original divides by 0; ours clips where it may
            assert got.isfinite().all() == tokenizer.schedule.clips
    if "size96.quant" in want:
        check_other_size(tokenizer, {run["mode"] for run in info["ddim_runs"]}, want)
    want.pop("in.x", None)
    want.pop("in.noised", None)
    assert not want, f"unchecked: {sorted(want)}"
    assert set(info) <= {"model", "procedural_inputs", "ddim_runs", "note"}


def check_other_size(tokenizer: VQTokenizer, modes: set[str], want: dict[str, Tensor]) -> None:
    """Two steps at another size; the case does not say reliably in which of its modes."""
    quant, noise, image = (want.pop(f"size96.{k}") for k in ("quant", "noise", "image"))
    close_by = []
    for mode in sorted(modes):
        got = tokenizer.decode(quant, noise=noise, steps=2, spacing=f"original-{mode}")
        close_by.append((got - image).abs().max().item())
    assert min(close_by) <= 1e-4, f"no mode of {sorted(modes)} gives the image: {close_by}"


def check_denoiser(
    tokenizer: VQTokenizer, noised: Tensor, quant: Tensor, want: dict[str, Tensor]
) -> None:
    steps = want.pop("in.timesteps")
    got = tokenizer.decoder(noised, steps, quant)
    close(got, want.pop("out.model_output"), "model output")
    got = tokenizer.decoder(noised, steps, quant, want.pop("in.cond_mask"))
    close(got, want.pop("out.model_output_masked"), "model output, masked")


def check_diffusion(case: CaseInfo) -> None:
    want, info = dict(case.tensors), case.info
    assert set(info) <= {"timesteps", "steps", "add_noise_t", "note"}
    for key in [k for k in want if k.startswith("alphas_cumprod.")]:
        name, form = key.removeprefix("alphas_cumprod.").rsplit(".", 1)
        assert form in ("zero_snr", "plain"), f"no check for {key}"
        kept = alphas_cumprod(name, len(want[key]), zero_terminal_snr=form == "zero_snr")
        close(kept, want.pop(key), key)
    for entry in info["timesteps"]:
        assert entry["scheduler"] in ("ddim", "ddpm"), f"no check for {entry['scheduler']}"
        original = f"original-{entry['mode']}"
        assert timesteps_of(entry["steps"], 1000, original) == entry["timesteps"]
        # Ours differ on purpose: as many as were asked for (docs/differences.md)
        assert len(timesteps_of(entry["steps"], 1000, entry["mode"])) == entry["steps"]
    sample, output, noise = (want.pop(k) for k in ("sample", "model_output", "noise"))
    times = torch.tensor(info["add_noise_t"])
    for key in [k for k in want if k.startswith(("add_noise.", "velocity."))]:
        what, name = key.split(".", 1)
        schedule = NoiseSchedule(alphas_cumprod(name))
        function = schedule.add_noise if what == "add_noise" else schedule.target
        close(function(sample, noise, times), want.pop(key), key)
    for entry in info["steps"]:
        check_ddim_step(entry, sample, output, want)
    assert not want, f"unchecked: {sorted(want)}"


def check_ddim_step(entry: dict, sample: Tensor, output: Tensor, want: dict[str, Tensor]) -> None:
    """One step; where the original is NaN, ours is clipped (docs/differences.md)."""
    raw = {"clip_sample": entry["clip_sample"], "thresholding": entry["thresholding"]}
    raw |= {"beta_schedule": entry["beta_schedule"], "prediction_type": entry["prediction_type"]}
    schedule = NoiseSchedule.of(parse_config({"class": "DiVAE", "format": 1, **raw}))
    following = max(entry["t"] - len(schedule) // entry["steps"], -1)
    got = schedule.ddim_step(sample, output, entry["t"], following)
    for value, name in zip(got, ("prev", "x0"), strict=True):
        key = f"step{entry['i']}.{name}"
        stored = want.pop(key)
        if stored.isnan().all():
            assert entry["thresholding"], f"{key} is NaN for an unknown reason"
            assert schedule.kept[entry["t"]] == 0
            assert value.isfinite().all()
        else:
            close(value, stored, key)


def check_losses(case: CaseInfo) -> None:
    t = case.tensors
    pairs = {
        "cross_entropy": (t["pred"], t["labels"]),
        "binary_cross_entropy": (t["mask_logits"], t["mask"]),
    }
    names = set(case.info) - {"note"}
    assert names <= set(LOSSES), f"no check for {sorted(names - set(LOSSES))}"
    for name in sorted(names):
        got = LOSSES[name](*pairs.get(name, (t["pred"], t["target"])))
        close(got[None], torch.tensor([case.info[name]]), name, tolerance=1e-5)


CHECKS = {
    "vqvae": check_vqvae,
    "vqvae_train": check_training,
    "divae": check_divae,
    "diffusion": check_diffusion,
    "losses": check_losses,
}
