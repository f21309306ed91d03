from __future__ import annotations

import pytest
import torch
from tiny import (
    CAPTION,
    DEPTH,
    GLOBAL,
    PIXELS,
    STYLES,
    hide_some,
    tiny_batch,
    tiny_config,
    tiny_model,
)

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError
from fourm_lite.model.config import PRESETS, FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import load_model
from fourm_lite.training.losses import pretraining_loss

EVERYTHING = ["rgb@16", "tok_depth@16", "tok_global", "caption", "t5"]


def training_batch(size: int = 3) -> TokenBatch:
    batch = tiny_batch(EVERYTHING, size)
    hidden = {n: hide_some(batch[n], seed=i) for i, n in enumerate(["tok_depth@16", "caption"])}
    return batch.with_(hidden)


@pytest.mark.parametrize("style", STYLES)
def test_a_batch_gives_what_its_rows_give_alone(style):
    model = tiny_model(style)
    batch = training_batch()

    together = model(batch, 48, 32)
    alone = [model(batch.rows(slice(i, i + 1)), 48, 32) for i in range(batch.size)]

    for name, prediction in together.items():
        logits = torch.cat([a[name].logits for a in alone])
        torch.testing.assert_close(prediction.logits, logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(prediction.ids, torch.cat([a[name].ids for a in alone]))


def test_padding_changes_nothing():
    model = tiny_model()
    batch = training_batch()

    tight = model(batch, 47, 26)
    padded = model(batch, 60, 40)

    for name in tight:
        torch.testing.assert_close(tight[name].logits, padded[name].logits, rtol=1e-4, atol=1e-5)


def test_the_order_of_modalities_changes_nothing_where_nothing_is_cut():
    model = tiny_model()
    batch = training_batch()
    turned = batch.only(*reversed(list(batch)))

    one, other = model(batch, 64, 64), model(turned, 64, 64)

    for name in one:
        torch.testing.assert_close(one[name].logits, other[name].logits, rtol=1e-4, atol=1e-5)


def test_what_is_hidden_does_not_matter():
    model = tiny_model()
    batch = tiny_batch(["rgb@16", "tok_depth@16"])
    hidden = batch["tok_depth@16"].hidden()
    other = Tokens((hidden.value + 1) % 12, hidden.inputs, hidden.targets)

    a = model.encode(batch.with_({"tok_depth@16": hidden}))
    b = model.encode(batch.with_({"tok_depth@16": other}))

    assert torch.equal(a.output, b.output)
    assert a.output.shape[1] == 16


def test_a_row_without_input_gives_what_it_gives_alone():
    model = tiny_model()
    batch = tiny_batch(["tok_depth@16"])
    nothing = torch.zeros(1, 16, dtype=torch.bool)
    mixed = Tokens(
        batch["tok_depth@16"].value,
        inputs=torch.cat([nothing, ~nothing]),
        targets=torch.zeros(2, 16, dtype=torch.bool),
    )
    wanted = Tokens.wanted(GLOBAL, 2)

    def decoded(batch: TokenBatch) -> torch.Tensor:
        return model.decode(model.pack_targets(batch), model.encode(batch))

    both = TokenBatch({"tok_depth@16": mixed, "tok_global": wanted})
    together = decoded(both)
    alone = torch.cat([decoded(both.rows(slice(i, i + 1))) for i in range(2)])

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("how", ["folder", "file.safetensors", "dtype"])
def test_saving_and_loading_gives_the_same_logits(style, how, tmp_path):
    model = tiny_model(style)
    model.save(tmp_path / how, extra={"licence": "Apache-2.0"})

    loaded = load_model(tmp_path / how, dtype=torch.float64 if how == "dtype" else None)

    assert not loaded.training
    assert loaded.config == model.config
    batch = training_batch()
    if how != "dtype":
        for name, prediction in model(batch, 64, 64).items():
            assert torch.equal(prediction.logits, loaded(batch, 64, 64)[name].logits)
    else:
        assert loaded.dtype == torch.float64


def test_loading_some_modalities_gives_the_same_numbers_for_them(tmp_path):
    model = tiny_model()
    model.save(tmp_path / "model")

    part = load_model(tmp_path / "model", inputs=["rgb@16"], outputs=["tok_global"])

    batch = tiny_batch(["rgb@16"]).with_({"tok_global": Tokens.wanted(GLOBAL, 2)})
    assert list(part.encoder_embeddings) == ["rgb@16"]
    assert list(part.decoder_embeddings) == ["tok_global"]
    whole = model(batch.only("rgb@16", "tok_global"), 16, 4)["tok_global"].logits
    assert torch.equal(part(batch, 16, 4)["tok_global"].logits, whole)


def test_loading_an_unknown_modality_names_the_nearest(tmp_path):
    tiny_model().save(tmp_path / "model")

    with pytest.raises(UnknownNameError, match="Did you mean 'tok_global'"):
        load_model(tmp_path / "model", outputs=["tok_globl"])


@pytest.mark.parametrize("style", STYLES)
def test_training_reaches_every_weight(style):
    model = tiny_model(style, use_act_checkpoint=True).train()
    batch = training_batch().with_(
        {"tok_global": hide_some(tiny_batch(["tok_global"], 3)["tok_global"])}
    )

    loss, _ = pretraining_loss(model(batch, 64, 64))
    loss.backward()

    untouched = {n for n, p in model.named_parameters() if p.grad is None}
    # A grid is decoded from mask tokens; its decoder's token table is there for checkpoints alone.
    unused = {f"decoder_embeddings.{n}.token_emb.weight" for n in ("tok_depth@16", "tok_global")}
    assert untouched == unused


def test_checkpointed_activations_give_the_same_gradients():
    grads = []
    for checkpointed in (False, True):
        model = tiny_model(use_act_checkpoint=checkpointed).train()
        pretraining_loss(model(training_batch(), 64, 64))[0].backward()
        grads.append(model.encoder[0].attn.qkv.weight.grad)

    torch.testing.assert_close(grads[0], grads[1])


def test_shared_modality_vectors_are_one_tensor_after_loading(tmp_path):
    tiny_model().save(tmp_path / "model")

    model = load_model(tmp_path / "model")

    both = model.encoder_embeddings["caption"], model.decoder_embeddings["caption"]
    assert both[0].mod_emb is both[1].mod_emb


def test_token_loss_is_the_mean_over_tokens():
    predictions = tiny_model()(training_batch(), 64, 64)

    loss, parts = pretraining_loss(predictions, "token")

    counts = {n: p.ids.shape[0] for n, p in predictions.items()}
    expected = sum(parts[n] * counts[n] for n in parts) / sum(counts.values())
    torch.testing.assert_close(loss, expected)


def test_mod_loss_leaves_absent_modalities_out():
    predictions = tiny_model()(training_batch(), 64, 64)

    loss, parts = pretraining_loss(predictions, "mod")

    present = [parts[n] for n, p in predictions.items() if p.ids.shape[0]]
    assert len(present) < len(parts)
    torch.testing.assert_close(loss, torch.stack(present).mean())


def test_a_sequence_too_long_for_the_encoder_is_refused():
    model = tiny_model()
    value = torch.full((1, 600), 20)
    batch = TokenBatch({"caption": Tokens.given(value, length=600)})

    with pytest.raises(FourMError, match="600 tokens"):
        model.encode(batch)


def test_can_tells_what_the_model_does():
    model = tiny_model()

    assert model.can(["rgb@16", "caption"], "tok_depth@16")
    assert model.can("caption", "tok_global")
    assert not model.can(["rgb@16"], "rgb@16")
    assert not model.can(["nothing"], "caption")


def test_config_survives_its_json_form():
    config = tiny_config("swiglu")

    assert FourMConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimm": 16}, "no key 'dimm'.*Did you mean 'dim'"),
        ({"dim": "16"}, "'dim' should be an integer"),
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"qk_norm": 1}, "'qk_norm' should be true or false"),
        ({"format": 99}, "format 99"),
        ({"act_layer": "GeLU"}, "act_layer is one of"),
    ],
)
def test_a_wrong_config_is_refused(change, message):
    data = {**tiny_config().to_dict(), **change}

    with pytest.raises(ConfigError, match=message):
        FourMConfig.from_dict(data)


def test_pixels_cannot_be_a_target():
    with pytest.raises(ConfigError, match="cannot be a target"):
        tiny_config(outputs=(PIXELS,))


def test_presets_have_the_published_sizes():
    config = FourMConfig(inputs=(CAPTION,), outputs=(DEPTH,), **PRESETS["base_swiglu_nobias"])
    with torch.device("meta"):
        model = FourM(config)

    blocks = sum(p.numel() for part in (model.encoder, model.decoder) for p in part.parameters())
    assert 190e6 < blocks < 205e6  # SPEC: 198M without embeddings
