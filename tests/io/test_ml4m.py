import json

import pytest
import torch

from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.checkpoint import Checkpoint, read
from fourm_lite.io.ml4m import FM_NAMES, fourm_config
from fourm_lite.io.weights_file import TensorInfo
from fourm_lite.io.writing import write_file
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import load_model

FM = {
    "domains_in": ["rgb@224", "tok_depth@224", "t5_caption"],
    "domains_out": ["tok_depth@224", "t5_caption"],
    "image_size": 224, "patch_size": 16, "act_layer": "SiLU", "norm_bias": False,
}  # fmt: skip
DECODER = {"mask_token": TensorInfo((1, 1, 768), "F32")}


def header_only(config, tensors=DECODER):
    return Checkpoint("somewhere", config, tensors, {}, None)


def translated(config, tensors=DECODER, known=MODALITIES):
    return fourm_config(config, header_only(config, tensors), known)


def test_defaults_are_those_of_the_original():
    own = translated(FM)

    assert own["decoder_sep_mask"] is True
    assert own["share_modality_embeddings"] is True
    assert own["qkv_bias"] is True
    assert own["qk_norm"] is False
    assert own["num_register_tokens"] == 0
    assert (own["dim"], own["num_heads"], own["mlp_ratio"]) == (768, 12, 4.0)


def test_the_result_is_a_config_of_our_own():
    config = FourMConfig.from_dict(translated(FM))

    assert config.inputs == tuple(MODALITIES[name] for name in FM["domains_in"])


def test_what_no_decoder_predicts_is_left_out_of_the_targets():
    assert [m["name"] for m in translated(FM)["outputs"]] == ["tok_depth@224"]


def test_global_tokens_follow_the_image_size_of_the_model():
    changes = {"image_size": 448, "domains_in": ["tok_dinov2_global"], "domains_out": []}

    (entry,) = translated({**FM, **changes})["inputs"]

    assert entry["grid"] == [8, 8]
    assert entry["max_tokens"] == 64


@pytest.mark.parametrize(
    "name", ["domains_in", "domains_out", "image_size", "patch_size", "act_layer", "norm_bias"]
)
def test_a_missing_key_is_named(name):
    with pytest.raises(ConfigError, match=name):
        translated({k: v for k, v in FM.items() if k != name})


WRONG = {
    "an unknown key": ({"decoder_dept": 12}, "Did you mean 'decoder_depth'"),
    "a tokenizer": ({"codebook_size": 8, "quant_type": "lucid"}, "load_tokenizer"),
    "text for a number": ({"dim": "wide"}, "'dim' should be an integer"),
    "true for a number": ({"dim": True}, "'dim' should be an integer"),
    "a number for true": ({"qkv_bias": 1}, "'qkv_bias' should be true or false"),
    "a huge number": ({"dim": 10**9}, "'dim' should be 0 to"),
    "a negative number": ({"patch_size": -1}, "'patch_size' should be 0 to"),
    "names that are text": ({"domains_in": "rgb@224"}, "'domains_in' should be a list"),
    "names that are numbers": ({"domains_in": [3]}, r"'domains_in\[0\]' should be text"),
    "a name twice": ({"domains_in": ["rgb@224", "rgb@224"]}, "'rgb@224' twice"),
    "a name of nowhere": ({"domains_in": ["tok_dpeth@224"]}, "neither known here"),
    "a depth of a billion": ({"encoder_depth": 5000}, "encoder_depth"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_named(changes, message):
    with pytest.raises(FourMError, match=message):
        translated({**FM, **changes})


def test_a_known_modality_with_another_vocabulary_is_named():
    tensors = {
        **DECODER,
        "encoder_embeddings.tok_depth@224.token_emb.weight": TensorInfo((9, 768), "F32"),
    }

    with pytest.raises(CheckpointError, match=r"vocab_size of the modality 'tok_depth@224'.* 8192"):
        translated(FM, tensors)


def test_a_file_of_the_vit_alone_may_leave_out_what_the_encoder_does_not_need():
    tensors = {"encoder_embeddings.rgb@224.mod_emb": TensorInfo((1, 1, 768), "F32")}
    config = {"image_size": 224, "patch_size": 16, "act_layer": "GELU"}

    own = translated(config, tensors)

    assert [m["name"] for m in own["inputs"]] == ["rgb@224"]
    assert own["outputs"] == []


# Forks: modalities that no table knows

FORK = (
    Modality(name="sky@32", kind="pixels", channels=5, image_size=32, patch_size=8, grid=(4, 4),
             max_tokens=16, directions=IN),
    Modality(name="tok_sky", kind="grid", vocab_size=9, grid=(4, 4), max_tokens=16),
    Modality(name="spectrum", kind="grid", vocab_size=9, grid=(1, 7), max_tokens=7),
    Modality(name="tall", kind="grid", vocab_size=9, grid=(6, 2), max_tokens=12),
    Modality(name="wide", kind="grid", vocab_size=9, grid=(3, 8), max_tokens=24),
    Modality(name="redshift", kind="grid", vocab_size=5, grid=(1, 1), max_tokens=1),
    Modality(name="vector", kind="grid", vocab_size=5, grid=(2, 2), max_tokens=4,
             pos_embed="learned"),
    Modality(name="notes", kind="sequence", vocab_size=11, max_tokens=512),
    Modality(name="embedding", kind="features", channels=6, max_tokens=512, directions=IN),
)  # fmt: skip


@pytest.fixture
def fork(tmp_path):
    """A small model of a fork, stored as ml-4m stores it, and the model itself."""
    torch.manual_seed(0)
    outputs = tuple(m for m in FORK if m.is_target)
    config = FourMConfig(
        inputs=FORK, outputs=outputs, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2,
        image_size=32, patch_size=8, share_modality_embeddings=False,
    )  # fmt: skip
    model = FourM(config).init_weights().eval()
    write_file(tmp_path / "model.safetensors", model.state_dict(), metadata=None)
    stored = {key: getattr(config, key) for key in FM_NAMES if not key.startswith("domains")}
    stored |= {"domains_in": [m.name for m in FORK], "domains_out": [m.name for m in outputs]}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    return tmp_path, model


def test_every_kind_of_unknown_modality_is_read_off_its_tensors(fork):
    folder, _ = fork
    checkpoint = read(folder)

    found = FourMConfig.from_dict(fourm_config(checkpoint.config, checkpoint, {}))

    assert found.inputs == FORK


def test_half_precision_tables_are_recognised_too(fork):
    folder, model = fork
    halves = {name: value.bfloat16() for name, value in model.state_dict().items()}
    write_file(folder / "model.safetensors", halves, metadata=None)
    checkpoint = read(folder)

    found = FourMConfig.from_dict(fourm_config(checkpoint.config, checkpoint, {}))

    assert found.inputs == FORK


def test_a_fork_opens_with_its_weights(fork):
    folder, model = fork

    loaded = load_model(folder).state_dict()

    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("pos_emb", (7,), "pos_emb' should have shape"),
        ("pos_emb", (1, 0, 16), "pos_emb' should have shape"),
        ("token_emb.weight", (9,), "should be a matrix"),
        ("token_emb.weight", (0, 16), "should be a matrix"),
    ],
)
def test_an_unknown_modality_of_strange_shape_is_told(key, shape, message):
    prefix = "encoder_embeddings.new"
    tensors = {
        **DECODER,
        f"{prefix}.pos_emb": TensorInfo((1, 4, 16), "F32"),
        f"{prefix}.token_emb.weight": TensorInfo((9, 16), "F32"),
        f"{prefix}.{key}": TensorInfo(shape, "F32"),
    }

    with pytest.raises(CheckpointError, match=message):
        translated({**FM, "domains_in": ["new"], "domains_out": []}, tensors)


def test_an_unknown_modality_without_a_known_table_is_told():
    tensors = {**DECODER, "encoder_embeddings.new.mod_emb": TensorInfo((1, 1, 16), "F32")}

    with pytest.raises(CheckpointError, match="cannot tell what the modality 'new' is"):
        translated({**FM, "domains_in": ["new"], "domains_out": []}, tensors)


@pytest.mark.parametrize("rows", [5, 16])
def test_pixels_whose_patches_do_not_come_out_are_told(rows):
    prefix = "encoder_embeddings.new"
    tensors = {
        **DECODER,
        f"{prefix}.pos_emb": TensorInfo((1, rows, 16), "F32"),
        f"{prefix}.proj.weight": TensorInfo((16, 7), "F32"),
    }

    with pytest.raises(CheckpointError, match="cannot tell the patches"):
        translated({**FM, "domains_in": ["new"], "domains_out": []}, tensors)


# Published layouts


@pytest.mark.parametrize("shared_names", ["encoder", "decoder"])
def test_shared_vectors_may_be_stored_under_either_name(tmp_path, shared_names):
    entries = (MODALITIES["tok_semseg@224"],)
    config = FourMConfig(inputs=entries, outputs=entries, dim=8, encoder_depth=1, decoder_depth=1,
                         num_heads=2)  # fmt: skip
    model = FourM(config).init_weights()
    state = model.state_dict()
    dropped = f"{shared_names}_embeddings.tok_semseg@224.mod_emb"
    kept = dropped.replace(*(("encoder", "decoder") if shared_names == "encoder" else
                             ("decoder", "encoder")))  # fmt: skip
    stored = {key: getattr(config, key) for key in FM_NAMES if not key.startswith("domains")}
    stored |= {"domains_in": ["tok_semseg@224"], "domains_out": ["tok_semseg@224"]}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    del state[dropped]
    write_file(tmp_path / "model.safetensors", state, metadata={dropped: kept})

    loaded = load_model(tmp_path)

    assert torch.equal(loaded.state_dict()[dropped], model.state_dict()[kept])


def test_both_layouts_of_a_stored_checkpoint_give_the_same_config(golden):
    folders = sorted((golden / "checkpoints").glob("*fm*"))
    assert folders
    for folder in folders:
        hub, single = read(folder), read(folder / "single.safetensors")
        assert fourm_config(hub.config, hub, MODALITIES) == fourm_config(
            single.config, single, MODALITIES
        )
