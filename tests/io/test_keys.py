import time

import pytest

from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.checkpoint import check_keys, check_sizes
from fourm_lite.io.weights_file import TensorInfo


def test_equal_names_pass_in_any_order():
    check_keys(["a", "b"], ["b", "a"])


def test_optional_names_may_be_there_or_not():
    check_keys(["a", "b"], ["a"], optional=["b", "c"])
    check_keys(["a"], ["a", "c"], optional=["b", "c"])


def test_missing_and_unexpected_names_are_told_with_the_nearest():
    with pytest.raises(CheckpointError) as caught:
        check_keys(["norm.weight", "b"], ["norm.wieght", "b"])

    message = str(caught.value)
    assert "1 missing: 'norm.weight' Did you mean 'norm.wieght'?" in message
    assert "1 unexpected: 'norm.wieght' Did you mean 'norm.weight'?" in message


def test_ten_names_are_told_and_the_rest_counted():
    with pytest.raises(CheckpointError, match=r"13 missing: .* and 3 more") as caught:
        check_keys([f"layer{i}" for i in range(13)], [])

    assert str(caught.value).count("layer") == 10


def test_many_long_names_are_told_quickly():
    start = time.perf_counter()

    with pytest.raises(CheckpointError):
        check_keys([f"{i}" + "x" * 5000 for i in range(2000)], [f"y{i}" * 900 for i in range(2000)])

    assert time.perf_counter() - start < 1.0


SIZES = {
    "encoder.0.mlp.fc1.weight": TensorInfo((42, 16), "F32"),
    "encoder.1.mlp.fc1.weight": TensorInfo((42, 16), "F32"),
    "decoder.0.mlp.fc1.weight": TensorInfo((42, 16), "F32"),
    "encoder_norm.weight": TensorInfo((16,), "F32"),
    "mask_token": TensorInfo((1, 1, 16), "F32"),
    "encoder_embeddings.depth.token_emb.weight": TensorInfo((12, 16), "F32"),
    "encoder_embeddings.depth.pos_emb": TensorInfo((1, 4, 16), "F32"),
    "encoder_embeddings.rgb.proj.weight": TensorInfo((16, 48), "F32"),
    "encoder_embeddings.text.pos_emb": TensorInfo((1, 512, 16), "F32"),
    "decoder_embeddings.depth.to_logits.weight": TensorInfo((12, 16), "F32"),
}
DEPTH = {"name": "depth", "kind": "grid", "vocab_size": 12, "max_tokens": 4}
RGB = {"name": "rgb", "kind": "pixels", "channels": 3, "patch_size": 4, "max_tokens": 4}
TEXT = {"name": "text", "kind": "sequence", "vocab_size": 30, "max_tokens": 9}
CONFIG = {
    "dim": 16, "encoder_depth": 2, "decoder_depth": 1, "mlp_ratio": 4, "gated_mlp": True,
    "inputs": [DEPTH, RGB, TEXT], "outputs": [DEPTH],
}  # fmt: skip


def test_sizes_that_fit_pass():
    check_sizes(CONFIG, SIZES)


MISFITS = {
    "width": ({"dim": 32}, "dim"),
    "width of a billion": ({"dim": 10**9}, "dim"),
    "depth": ({"encoder_depth": 3}, "encoder_depth=3"),
    "depth of a billion": ({"decoder_depth": 10**9}, "decoder_depth"),
    "negative depth": ({"encoder_depth": -1}, "encoder_depth"),
    "hidden width": ({"mlp_ratio": 5}, "hidden width"),
    "hidden width of a billion": ({"mlp_ratio": 1e300}, "hidden width"),
    "infinite hidden width": ({"mlp_ratio": float("inf")}, "mlp_ratio"),
    "mlp_ratio that is text": ({"mlp_ratio": "4"}, "mlp_ratio|hidden"),
    "registers": ({"num_register_tokens": 4}, "num_register_tokens"),
    "vocabulary": ({"inputs": [{**DEPTH, "vocab_size": 13}]}, "vocab_size of the modality 'depth'"),
    "positions": ({"inputs": [{**DEPTH, "max_tokens": 9}]}, "positions of the modality 'depth'"),
    "patches": ({"inputs": [{**RGB, "patch_size": 8}]}, "patch of the modality 'rgb'"),
    "vocabulary of the targets": ({"outputs": [{**DEPTH, "vocab_size": 13}]}, "to_logits"),
}


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_size_that_does_not_fit_is_named(changes, message):
    with pytest.raises(FourMError, match=message) as caught:
        check_sizes({**CONFIG, **changes}, SIZES)

    assert isinstance(caught.value, CheckpointError | ConfigError)
