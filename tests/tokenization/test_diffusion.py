"""Noise schedules, DDIM steps against diffusers, and the diffusion decoders' contracts."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from vq_configs import diffusion_config

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.tokenization.vq.denoising import make_diffusion_decoder
from fourm_lite.tokenization.vq.diffusion import (
    BETA_SCHEDULES,
    NoiseSchedule,
    alphas_cumprod,
    ddim_pairs,
    log_snr_times,
    make_scheduler,
    sample_ddim,
    sample_dpm,
    sample_with,
    timesteps_of,
)
from fourm_lite.tokenization.vq.uvit import UVIT_PRESETS, Middle, uvit_preset
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

SCHEDULES = [*BETA_SCHEDULES, "shifted_cosine:0.5", "shifted_cosine:2"]
PREDICTIONS = ["sample", "epsilon", "v_prediction"]
DECODERS = {
    "unet": {"dec_type": "unet_patched_32"},
    "uvit f16": {"dec_type": "uvit_32x2x2_p4_f16"},
    "uvit f8": {"dec_type": "uvit_32x2x2_p4_f8"},
    "uvit cross": {"dec_type": "uvit_32x2x2_p4_f16", "conditioning": "xattn"},
}


def awakened(module):
    """A fresh network with its silent branches made audible."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


@pytest.fixture(params=DECODERS, ids=str)
def tokenizer(request):
    return awakened(VQTokenizer(diffusion_config(**DECODERS[request.param])))


def some_tokens(generator, grid=(4, 4)):
    return torch.randint(24, (2, *grid), generator=generator)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 1000])
def test_signal_falls_from_almost_all_to_none(name, steps):
    kept = alphas_cumprod(name, steps)

    assert kept.dtype == torch.float32
    assert (kept.diff() <= 0).all()
    assert kept[0] > 0.9
    assert kept[-1] == 0


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_the_terminal_signal_is_removed_only_on_request(name):
    assert alphas_cumprod(name, zero_terminal_snr=False)[-1] > 0


@pytest.mark.parametrize("name", ["cosin", "shifted_cosine:", "shifted_cosine:-1", "linaer"])
def test_an_unknown_schedule_is_refused(name):
    with pytest.raises(ConfigError, match=r"schedule|positive number"):
        alphas_cumprod(name)


@given(
    steps=st.integers(1, 1000),
    spacing=st.sampled_from(["trailing", "linspace", "leading"]),
)
def test_any_number_of_steps_gives_exactly_that_many(steps, spacing):
    times = timesteps_of(steps, 1000, spacing)

    assert len(times) == len(set(times)) == steps
    assert times == sorted(times, reverse=True)
    assert 0 <= times[-1] <= times[0] <= 999


def test_our_steps_follow_each_other_and_end_clean():
    pairs = ddim_pairs(30, 1000, "trailing")

    assert pairs[0][0] == 999
    assert [a for a, _ in pairs[1:]] == [b for _, b in pairs[:-1]]
    assert pairs[-1][1] == -1


def test_the_originals_spacing_is_there_on_request():
    assert len(timesteps_of(30, 1000, "original-trailing")) == 31
    assert ddim_pairs(5, 1000, "original-linspace")[:2] == [(999, 799), (749, 549)]


@pytest.mark.parametrize("steps", [0, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ConfigError, match=r"1\.\.1000"):
        timesteps_of(steps)


def test_an_unknown_spacing_is_answered_with_the_nearest_one():
    with pytest.raises(ConfigError, match="Did you mean 'trailing'"):
        timesteps_of(5, 1000, "trailling")


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_perfect_prediction_gives_back_image_and_noise(generator, prediction_type):
    schedule = NoiseSchedule(alphas_cumprod("linear"), prediction_type, clips=False)
    x, noise = torch.randn(2, 3, 1, 4, 4, generator=generator)
    times = torch.tensor([100, 400, 700])

    noised = schedule.add_noise(x, noise, times)
    clean, found = schedule.split(noised, schedule.target(x, noise, times), times)

    assert torch.allclose(clean, x, atol=1e-3)
    assert torch.allclose(found, noise, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 30])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_sampling_with_a_perfect_network_gives_the_image(generator, steps, prediction_type):
    kept = alphas_cumprod("linear", zero_terminal_snr=prediction_type != "epsilon")
    schedule = NoiseSchedule(kept, prediction_type, clips=False)
    x, noise = torch.randn(2, 2, 1, 4, 4, generator=generator)
    start = schedule.add_noise(x, noise, torch.tensor([999, 999]))

    out = sample_ddim(
        lambda _, t: schedule.target(x, noise, t), start, schedule, steps=steps, spacing="trailing"
    )

    assert torch.allclose(out, x, atol=2e-2)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("clips", [True, False])
def test_ddim_agrees_with_diffusers_where_the_steps_divide(generator, prediction_type, clips):
    kept = alphas_cumprod("linear", zero_terminal_snr=False)
    schedule = NoiseSchedule(kept, prediction_type, clips)
    noise = torch.randn(1, 1, 4, 4, generator=generator)

    def network(x, t):
        return 0.3 * x.sin()

    scheduler = make_scheduler(schedule, "DDIMScheduler", timestep_spacing="trailing")

    ours = sample_ddim(network, noise, schedule, steps=10, spacing="trailing")
    theirs = sample_with(scheduler, network, noise, steps=10, generator=None)

    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


# Inside diffusers, with recent numpy
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["ddpm", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_schedulers_of_diffusers_decode(generator, name):
    tokenizer = awakened(VQTokenizer(diffusion_config()))
    tokens = some_tokens(generator)
    seeds = (1, 1, 2)

    images = [
        tokenizer.detokenize(
            tokens, steps=3, scheduler=name, generator=torch.Generator().manual_seed(s)
        )
        for s in seeds
    ]

    assert images[0].shape == (2, 1, 32, 32)
    assert images[0].isfinite().all()
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_an_unknown_scheduler_is_answered_with_the_nearest_one():
    tokenizer = VQTokenizer(diffusion_config())

    with pytest.raises(ConfigError, match="Did you mean 'DDPMScheduler'"):
        tokenizer.detokenize(torch.zeros(1, 4, 4, dtype=torch.int64), scheduler="DDPMSchedular")


def test_a_seed_decides_the_image_and_the_global_state_stays(tokenizer, generator):
    tokens = some_tokens(generator)
    before = torch.get_rng_state()

    first, again, other = (
        tokenizer.detokenize(tokens, steps=2, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_decoder_in_half_precision_stays_close(tokenizer, generator):
    tokens, noise = some_tokens(generator), torch.randn(2, 1, 32, 32, generator=generator)
    full = tokenizer.detokenize(tokens, steps=2, noise=noise)

    half = tokenizer.to(torch.bfloat16).detokenize(tokens, steps=2, noise=noise)

    assert (half.float() - full).abs().mean() < 0.3 * full.abs().mean()


def test_tokens_and_time_matter_to_the_decoder(tokenizer, generator):
    x = torch.randn(2, 1, 32, 32, generator=generator)
    latents = tokenizer.lookup(some_tokens(generator))
    times = torch.tensor([10, 900])
    with torch.no_grad():
        base = tokenizer.decoder(x, times, latents)

        assert not torch.allclose(base, tokenizer.decoder(x, times.flip(0), latents), atol=1e-4)
        assert not torch.allclose(base, tokenizer.decoder(x, times, latents.flip(0)), atol=1e-4)


def test_removing_all_conditions_leaves_nothing_of_the_tokens(tokenizer, generator):
    x, times = torch.randn(2, 1, 32, 32, generator=generator), torch.tensor([10, 900])
    first, second = (tokenizer.lookup(some_tokens(generator)) for _ in range(2))
    removed = torch.ones(2, 4, 4, dtype=torch.bool)
    with torch.no_grad():
        one, two = (tokenizer.decoder(x, times, z, removed) for z in (first, second))

    # In cross-attention a query without any key gets the mean of the values, as in the original
    assert torch.equal(one, two) == (tokenizer.config.conditioning != "xattn")


def test_guidance_moves_away_from_the_unconditioned_image(tokenizer, generator):
    if tokenizer.config.conditioning == "xattn":
        pytest.skip("fully blocked cross-attention still averages the latents")
    tokens = some_tokens(generator)
    options = {"steps": 1, "noise": torch.randn(2, 1, 32, 32, generator=generator)}
    latents = tokenizer.lookup(tokens)
    removed = torch.ones(2, 4, 4, dtype=torch.bool)
    tokenizer._schedule = NoiseSchedule(alphas_cumprod("linear"), "sample", clips=False)
    times = torch.tensor([999, 999])
    with torch.no_grad():
        given = tokenizer.decoder(options["noise"], times, latents)
        free = tokenizer.decoder(options["noise"], times, latents, removed)

    guided = tokenizer.detokenize(tokens, guidance=3.0, **options)

    # Means: norms over the few values of a tiny UNet amplify the rounding of single pixels
    assert (guided - (free + 3.0 * (given - free))).abs().mean() < 1e-3
    assert (guided - given).abs().mean() > 1e-1 * given.abs().mean()
    assert (tokenizer.detokenize(tokens, **options) - given).abs().mean() < 1e-4


def test_images_need_not_be_square_nor_of_the_trained_size(tokenizer, generator):
    tokens = some_tokens(generator, grid=(4, 8))

    assert tokenizer.detokenize(tokens, steps=1).shape == (2, 1, 32, 64)
    assert tokenizer.detokenize(tokens, steps=1, size=(64, 32)).shape == (2, 1, 64, 32)


def test_a_size_that_the_network_cannot_make_is_refused(tokenizer, generator):
    multiple = tokenizer.decoder.preset.multiple
    tokens = some_tokens(generator)

    with pytest.raises(ShapeError, match=f"multiples of {multiple}, got 36x36; pass size"):
        tokenizer.detokenize(tokens, size=(36, 36))
    with pytest.raises(ShapeError, match=f"multiples of {multiple}"):
        tokenizer.decoder(torch.zeros(1, 1, 36, 36), torch.tensor([3]), tokenizer.lookup(tokens))
    with pytest.raises(ShapeError, match="noise expects shape"):
        tokenizer.detokenize(tokens, noise=torch.zeros(2, 1, 64, 64))


@pytest.mark.parametrize("masked", [True, False])
def test_training_hides_the_condition_of_some_samples(generator, masked):
    config = diffusion_config(cls_free_guidance_dropout=0.5, masked_cfg=masked)
    tokenizer = VQTokenizer(config).train()
    seen = []
    tokenizer.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[3]))

    for _ in range(8):
        tokenizer(torch.zeros(4, 1, 32, 32), generator=generator)

    hidden = torch.cat(seen).float().mean(dim=(1, 2))
    assert (hidden == 0).any()
    assert (hidden > 0).any()
    assert masked == ((hidden > 0) & (hidden < 1)).any()


def test_diffusion_learns_what_the_schedule_asks_for(generator):
    tokenizer = VQTokenizer(diffusion_config(prediction_type="sample")).train()
    x = torch.rand(2, 1, 32, 32, generator=generator)

    assert torch.equal(tokenizer(x, generator=generator).target, x)


@pytest.mark.parametrize("name", UVIT_PRESETS)
def test_every_uvit_preset_divides_into_heads_of_even_width(name):
    preset = uvit_preset(name)

    assert preset.dim % (4 * preset.num_heads) == 0


@pytest.mark.parametrize("name", [n for n in UVIT_PRESETS if n.startswith("uvit_b")])
def test_each_form_of_uvit_keeps_the_shape(name):
    config = diffusion_config(dec_type=name, image_size=32)
    with torch.device("meta"):
        decoder = make_diffusion_decoder(config)
        out = decoder(
            torch.zeros(1, 1, 64, 32), torch.zeros(1, dtype=torch.long), torch.zeros(1, 8, 4, 2)
        )

    assert out.shape == (1, 1, 64, 32)
    assert len(decoder.mid_block.mid_block) == uvit_preset(name).depth


@pytest.mark.parametrize("conditioning", ["concat", "xattn"])
@pytest.mark.parametrize("name", ["uvit_b_p4_f16_longskip", "uvit_l_p4_f16_longskip"])
def test_every_block_of_the_last_half_owns_its_long_skip(name, conditioning):
    with torch.device("meta"):
        decoder = make_diffusion_decoder(diffusion_config(dec_type=name, conditioning=conditioning))
    depth = uvit_preset(name).depth

    keys = [k for k in decoder.state_dict() if ".skip_linear." in k]

    assert keys == [
        f"mid_block.mid_block.{i}.skip_linear.{kind}"
        for i in range(depth // 2 + 1, depth)
        for kind in ("weight", "bias")
    ]


def test_long_skips_join_the_first_blocks_in_reverse():
    """Blocks that add 1, 10, 100, ... to what they get, joined by [x, skip] -> 2 x + skip."""

    class Adds(nn.Module):
        def __init__(self, value, has_skip):
            super().__init__()
            self.value = value
            self.skip_linear = (lambda y: 2 * y[..., :1] + y[..., 1:]) if has_skip else None

        def forward(self, y):
            return y + self.value

    blocks = [Adds(10.0**i, has_skip=i > 2) for i in range(5)]

    out = Middle.transformed(None, torch.zeros(1, 1, 1), blocks)

    assert out.item() == 2 * (2 * 111 + 11 + 1000) + 1 + 10000


@pytest.mark.parametrize("name", ["unet_patcht", "uvit_b_p4", "unet_patched_33"])
def test_an_unknown_decoder_is_refused(name):
    with pytest.raises(ConfigError, match=r"is one of|multiple of 32"):
        VQTokenizer(diffusion_config(dec_type=name))


def test_label_maps_have_no_diffusion_decoder():
    with pytest.raises(ConfigError, match="label maps"):
        VQTokenizer(diffusion_config(n_labels=5))


def known_answers(schedule, pictures, noise=0.05):
    """The best prediction where an image is one of some pictures with a little noise."""

    def denoise(x, timesteps):
        signal, sigma = schedule.weights_at(int(timesteps[0]))
        variance = (signal * noise) ** 2 + sigma**2
        off = ((x[:, None].double() - signal * pictures.double()) ** 2).flatten(2).sum(dim=2)
        weights = torch.softmax(-off / (2 * variance), dim=1).float()
        mean = torch.einsum("nk,kchw->nchw", weights, pictures)
        clean = mean + signal * noise**2 / variance * (x - signal * mean)
        made = (x - signal * clean) / sigma
        kinds = {"sample": clean, "epsilon": made, "v_prediction": signal * made - sigma * clean}
        return kinds[schedule.prediction_type]

    return denoise


def decibels(image, truth):
    return float(10 * torch.log10(4 / (image - truth).square().mean()))


@pytest.mark.parametrize(
    ("prediction", "betas", "ends_without_signal"),
    [
        ("v_prediction", "linear", True),
        ("v_prediction", "shifted_cosine:0.5", True),
        ("v_prediction", "squaredcos_cap_v2", True),
        ("sample", "linear", True),
        ("epsilon", "linear", False),
    ],
)
@pytest.mark.parametrize("apart", [0.1, 0.6])
def test_the_usual_steps_are_nearer_to_100_of_ddim_than_25_are(
    prediction, betas, ends_without_signal, apart
):
    generator = torch.Generator().manual_seed(0)
    kept = alphas_cumprod(betas, zero_terminal_snr=ends_without_signal)
    schedule = NoiseSchedule(kept, prediction, clips=True)
    rough = torch.randn(12, 3, 6, 6, generator=generator)
    coarse = torch.nn.functional.interpolate(rough, size=(24, 24), mode="bicubic")
    denoise = known_answers(schedule, (apart * (coarse - coarse[:1]) + coarse[:1] / 3).clamp(-1, 1))
    noise = torch.randn(4, 3, 24, 24, generator=generator)
    many = sample_ddim(denoise, noise, schedule, steps=100, spacing="trailing")

    fast = sample_dpm(denoise, noise, schedule, steps=8)

    before = sample_ddim(denoise, noise, schedule, steps=25, spacing="trailing")
    # half a decibel: where two pictures are nearly alike, both choose one at times
    assert decibels(fast, many) >= decibels(before, many) - 0.5


@pytest.mark.parametrize(
    ("prediction", "betas"),
    # noise alone says nothing where the schedule ends without signal
    [(p, b) for p in PREDICTIONS for b in SCHEDULES if p != "epsilon" or b in BETA_SCHEDULES],
)
@pytest.mark.parametrize("clips", [True, False])
def test_of_gaussians_of_any_width_the_usual_steps_stay_nearer(prediction, betas, clips):
    """The best prediction of a Gaussian is known: from details that tokens decide to none of it."""
    generator = torch.Generator().manual_seed(0)
    widths = torch.tensor([0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0]).double()
    mean = torch.rand(32, 1, 1, 7, generator=generator, dtype=torch.float64) * 1.2 - 0.6
    noise = torch.randn(32, 1, 1, 7, generator=generator, dtype=torch.float64)
    kept = alphas_cumprod(betas, zero_terminal_snr=prediction != "epsilon")
    schedule = NoiseSchedule(kept.double(), prediction, clips)

    def denoise(x, timesteps):
        signal, sigma = schedule.weights_at(int(timesteps[0]))
        share = signal * widths**2 / ((signal * widths) ** 2 + sigma**2)
        clean = mean + share * (x - signal * mean)
        made = (x - signal * clean) / sigma
        kinds = {"sample": clean, "epsilon": made, "v_prediction": signal * made - sigma * clean}
        return kinds[prediction]

    def ddim(steps):
        return sample_ddim(denoise, noise, schedule, steps=steps, spacing="trailing")

    far = (ddim(25) - ddim(100)).square().mean(dim=(0, 1, 2))
    near = (sample_dpm(denoise, noise, schedule, steps=8) - ddim(100)).square().mean(dim=(0, 1, 2))

    assert (near < far).all(), 10 * torch.log10(far / near)


def test_ddim_is_one_option_away_and_a_spacing_means_it(generator):
    tokenizer = awakened(VQTokenizer(diffusion_config(**DECODERS["unet"])))
    tokens, noise = some_tokens(generator), torch.randn(2, 1, 32, 32, generator=generator)

    def image(**options):
        return tokenizer.detokenize(tokens, noise=noise, **options)

    exact = image(scheduler="ddim", steps=25, spacing="trailing")
    assert torch.equal(image(scheduler="ddim"), exact)
    assert torch.equal(image(spacing="trailing"), exact)
    assert torch.equal(image(), image(scheduler="dpm++", steps=8))
    assert not torch.equal(image(), exact)


@pytest.mark.parametrize("steps", [1, 2, 8, 40, 1000])
def test_steps_in_log_snr_fall_from_pure_noise(steps):
    times = log_snr_times(steps, NoiseSchedule(alphas_cumprod("linear")).log_snr)

    assert times[0] == 999
    assert all(a > b for a, b in itertools.pairwise(times))
    assert len(times) <= steps
