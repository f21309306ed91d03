"""Configuration of a VQ tokenizer: the keys and defaults of 4M's, and a few of our own.

Unusual: an original config may carry any training argument, so keys that mean nothing here are
logged and left out; a config that we wrote (it has `format`) is strict. The class of the
tokenizer is not written in original configs; it is guessed from keys and written down when we
save. Imports no torch.
"""

from __future__ import annotations

import logging
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from fourm_lite.errors import ConfigError, check_choice, suggest
from fourm_lite.io.recipe import convert

log = logging.getLogger(__name__)

FORMAT = 1
Kind = Literal["VQ", "VQVAE", "DiVAE", "VQControlNet"]
QuantType = Literal["lucid", "memcodes", "fsq"]
Replacement = Literal["batch_random", "linde_buzo_gray"]
PredictionType = Literal["sample", "epsilon", "v_prediction"]
Conditioning = Literal["concat", "xattn"]
Size = int | tuple[int, int]

# Bounds that keep a damaged or hostile config from asking for absurd amounts of memory or time
LIMITS = {
    **dict.fromkeys(("n_channels", "n_labels", "latent_dim", "codebook_dim"), 2**24),
    "codebook_size": 2**24,
    "num_codebooks": 4096,
    **dict.fromkeys(("image_size", "image_size_enc", "image_size_dec"), 2**16),
    **dict.fromkeys(("patch_size", "patch_size_dec"), 4096),
    "num_train_timesteps": 10**6,
}
# Keys of ours around the configuration proper
ENVELOPE = frozenset({"format", "class"})
# Parts of a state dict that a tokenizer can hold; anything else belongs to Stable Diffusion
PARTS = (
    "cls_emb.",
    "encoder.",
    "quant_proj.",
    "quantize.",
    "post_quant_proj.",
    "decoder.",
    "input_",
)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What a VQ tokenizer is made of; the words are those of 4M's configs.

    Units:
        image_size: pixels; with `patch_size` it gives the grid of the stored position maps only
        threshold_ema_dead_code: codes used less often than this (moving average) are replaced
        levels: ours; of each channel of a finite quantizer ("fsq"), whose product is codebook_size
        one_hot: ours; whether class maps are read as n_channels maps of 0 and 1
        label_names: ours; what the classes of a class map are called
        mean, scale: ours; the input becomes (x - mean) * scale, undone after decoding
    """

    kind: Kind = "VQVAE"
    image_size: Size = 224
    image_size_enc: Size | None = None
    image_size_dec: Size | None = None
    n_channels: int = 3
    n_labels: int | None = None
    label_names: tuple[str, ...] | None = None
    one_hot: bool = False
    undo_std: bool = False
    mean: tuple[float, ...] | None = None
    scale: float | None = None
    enc_type: str = "vit_b_enc"
    patch_proj: bool = True
    patch_size: int = 16
    post_mlp: bool = False
    quant_type: QuantType = "lucid"
    codebook_size: int = 16384
    levels: tuple[int, ...] | None = None
    num_codebooks: int = 1
    latent_dim: int = 32
    codebook_dim: int | None = None
    norm_codes: bool = True
    norm_latents: bool = False
    ema_decay: float = 0.99
    threshold_ema_dead_code: float = 0.25
    code_replacement_policy: Replacement = "batch_random"
    commitment_weight: float = 1.0
    kmeans_init: bool = False
    freeze_enc: bool = False
    dec_type: str | None = None
    patch_size_dec: int | None = None
    out_conv: bool = False
    num_train_timesteps: int = 1000
    beta_schedule: str = "squaredcos_cap_v2"
    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = True
    clip_sample: bool = False
    thresholding: bool = True
    conditioning: Conditioning = "concat"
    dec_transformer_dropout: float = 0.2
    cls_free_guidance_dropout: float = 0.0
    masked_cfg: bool = False
    masked_cfg_low: int = 0
    masked_cfg_high: int | None = None

    def __post_init__(self) -> None:
        """Fills the decoder's name and refuses contradictions."""
        if self.dec_type is None and self.has_decoder:
            default = "unet_patched" if self.is_diffusion else "vit_b_dec"
            object.__setattr__(self, "dec_type", default)
        self._check_sizes()
        if self.quant_type == "memcodes" and self.latent_dim % self.num_codebooks:
            raise ConfigError(
                f"memcodes splits latent_dim over its codebooks: {self.latent_dim} is not a "
                f"multiple of num_codebooks={self.num_codebooks}"
            )
        if (self.quant_type == "fsq") != (self.levels is not None):
            raise ConfigError(
                f"quant_type 'fsq' and levels go together, got '{self.quant_type}' and "
                f"{self.levels}"
            )
        if self.levels is not None and (
            math.prod(self.levels) != self.codebook_size or len(self.levels) != self.latent_dim
        ):
            raise ConfigError(
                f"levels {list(self.levels)} give {math.prod(self.levels)} codes of "
                f"{len(self.levels)} channels, the config has codebook_size={self.codebook_size} "
                f"and latent_dim={self.latent_dim}"
            )
        if self.mean is not None and len(self.mean) not in (1, self.n_channels):
            raise ConfigError(
                f"mean holds 1 or n_channels={self.n_channels} numbers, got {len(self.mean)}"
            )
        if self.scale == 0.0:
            raise ConfigError("scale must not be 0: decoding divides by it")
        if self.undo_std and self.n_channels != 3:
            raise ConfigError(f"undo_std is for RGB images, got n_channels={self.n_channels}")
        if self.label_names is not None and len(self.label_names) != self.n_labels:
            raise ConfigError(
                f"label_names holds n_labels={self.n_labels} names, got {len(self.label_names)}"
            )
        if self.n_labels is not None and self.is_centered:
            raise ConfigError("mean and scale centre real values; a label map (n_labels) has none")

    def _check_sizes(self) -> None:
        """Refuses numbers that no tokenizer has, before anything is built from them."""
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            sizes = value if isinstance(value, tuple) else (value,)
            if any(v is not None and not 1 <= v <= limit for v in sizes):
                raise ConfigError(f"{name} must lie in 1..{limit}, got {value}")
        for name, value in asdict(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
                raise ConfigError(f"{name} must be finite, got {value}")

    @property
    def is_diffusion(self) -> bool:
        """Whether the decoder denoises instead of predicting directly."""
        return self.kind == "DiVAE"

    @property
    def has_decoder(self) -> bool:
        """Whether the tokenizer can decode: VQ cannot, VQControlNet needs more weights."""
        return self.kind in ("VQVAE", "DiVAE")

    @property
    def is_centered(self) -> bool:
        """Whether the input is centred (`mean`, `scale`)."""
        return self.mean is not None or self.scale is not None

    @property
    def out_channels(self) -> int:
        """Channels of a decoded map: class scores for label maps."""
        return self.n_labels or self.n_channels

    @property
    def decoder_patch(self) -> int:
        """Pixels that a token spans on the decoder's side."""
        return self.patch_size_dec or self.patch_size

    def grid(self, side: Literal["enc", "dec"] = "enc") -> tuple[int, int]:
        """Height and width, in tokens, of the position map stored for one side."""
        size = pair(
            (self.image_size_enc if side == "enc" else self.image_size_dec) or self.image_size
        )
        patch = self.patch_size if side == "enc" else self.decoder_patch
        return size[0] // patch, size[1] // patch

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values, with the class and the format's number."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.label_names is None:  # earlier versions refuse a key that they do not know
            del values["label_names"]
        return {"format": FORMAT, "class": values.pop("kind"), **values}


def pair(size: Size) -> tuple[int, int]:
    """A size as height and width."""
    return (size, size) if isinstance(size, int) else size


def parse_config(raw: Mapping[str, Any], keys: Iterable[str] = ()) -> TokenizerConfig:
    """Reads a tokenizer's config, original or ours.

    `keys` are the names of its weights, if known: they settle what an original config leaves open.

    Raises:
        ConfigError: a value has the wrong type, a key of our own format is unknown or too new
    """
    own = "format" in raw
    if own and raw["format"] != FORMAT:
        raise ConfigError(
            f"this version reads tokenizer format {FORMAT}, got {raw['format']!r}; "
            "update fourm_lite"
        )
    hints = typing.get_type_hints(TokenizerConfig)
    unknown = sorted(set(raw) - set(hints) - ENVELOPE)
    if own and unknown:
        raise ConfigError(
            f"unknown tokenizer config key {unknown[0]!r}.{suggest(unknown[0], hints)}"
        )
    if unknown:
        log.debug("config keys without a meaning here: %s", ", ".join(unknown))
    given = [n for n in hints.keys() & raw.keys() if not (raw[n] is None and _has_default(n))]
    try:
        values = {n: convert(hints[n], _number(raw[n], hints[n]), n) for n in given if n != "kind"}
    except ConfigError as error:
        raise ConfigError(f"a tokenizer's config: {error}") from error
    return TokenizerConfig(kind=_kind(raw, keys), **values)


def guess_kind(raw: Mapping[str, Any], keys: Iterable[str] = ()) -> Kind:
    """The class of an original tokenizer, from its weights' names or else from its config."""
    names = list(keys)
    if any(not name.startswith(PARTS) for name in names) or {"sd_path", "pretrained_cn"} & set(raw):
        return "VQControlNet"
    if names and not any(name.startswith("decoder.") for name in names):
        return "VQ"
    if names:
        direct = any(name.startswith("post_quant_proj.") for name in names)
        return "VQVAE" if direct else "DiVAE"
    if str(raw.get("dec_type") or "").startswith(("unet", "uvit")):
        return "DiVAE"
    if {"prediction_type", "beta_schedule", "num_train_timesteps"} & set(raw):
        return "DiVAE"
    return "VQVAE"


def _kind(raw: Mapping[str, Any], keys: Iterable[str]) -> Kind:
    named = raw.get("class", raw.get("kind"))
    if named is None:
        return guess_kind(raw, keys)
    check_choice("a tokenizer's class", named, of=get_args(Kind))
    return typing.cast(Kind, named)


def _has_default(name: str) -> bool:
    """Whether an absent value (null) means the default; it does for everything with one."""
    return any(f.name == name and f.default is not None for f in fields(TokenizerConfig))


def _number(value: Any, hint: Any) -> Any:
    """Numbers may come as text ('1e-05' in metadata)."""
    if hint is not float or not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
