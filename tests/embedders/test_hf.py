"""Vectors of transformers models, from saved folders, against the library's own calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_networks import TEXT, VIT, align, clip, dinov2, dinov3, siglip, siglip2, transformers

from fourm_lite.embedders.hf import load_hf
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, ConfigError, FourMError

from .conftest import unit

CLOSE = {"atol": 1e-5, "rtol": 0}
TWINS = {"clip": clip, "siglip": siglip, "siglip2": siglip2, "align": align}


@pytest.fixture(scope="module")
def twin_folders(tmp_path_factory):
    """Each dual encoder once, with random weights, saved by its own library."""
    folders = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, build in TWINS.items():
            model, processor, padding = build()
            folder = tmp_path_factory.mktemp(name)
            model.eval().save_pretrained(folder)
            processor.save_pretrained(folder)
            folders[name] = (folder, model, processor, padding)
    return folders


def image_features(model, processor, images) -> np.ndarray:
    inputs = processor.image_processor(images, return_tensors="pt")
    with torch.inference_mode():
        return unit(model.get_image_features(**inputs).pooler_output)


@pytest.mark.parametrize("name", TWINS)
def test_image_vectors_equal_the_librarys_single_and_batched(name, twin_folders, photos):
    folder, model, processor, _ = twin_folders[name]

    embedder = load_embedder(f"hf:{folder}")
    batched = embedder.embed_image(photos)
    single = np.concatenate([embedder.embed_image(photo) for photo in photos])

    want = np.concatenate([image_features(model, processor, [photo]) for photo in photos])
    assert batched.dtype == np.float32
    assert np.allclose(np.linalg.norm(batched, axis=1), 1, **CLOSE)
    assert np.allclose(batched, want, **CLOSE)
    assert np.allclose(single, want, **CLOSE)


@pytest.mark.parametrize("name", TWINS)
def test_text_vectors_equal_the_librarys_single_and_batched(name, twin_folders, texts):
    folder, model, processor, padding = twin_folders[name]
    with torch.inference_mode():
        inputs = processor(text=texts, return_tensors="pt", **padding)
        want = unit(model.get_text_features(**inputs).pooler_output)

    embedder = load_embedder(f"hf:{folder}")
    single = np.concatenate([embedder.embed_text(text) for text in texts])

    assert np.allclose(embedder.embed_text(texts), want, **CLOSE)
    assert np.allclose(single, want, **CLOSE)


@pytest.mark.parametrize("name", TWINS)
def test_raw_vectors_keep_their_length_and_batches_their_order(name, twin_folders, photos):
    embedder = load_embedder(f"hf:{twin_folders[name][0]}")

    raw = embedder.embed_image(photos, batch_size=3, normalize=False)

    unit_vectors = embedder.embed_image(photos)
    assert embedder.dim == raw.shape[1]
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.allclose(raw / lengths, unit_vectors, **CLOSE)
    assert not np.allclose(lengths, 1, atol=1e-3)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_scaled_cosines_are_the_librarys_logits(name, twin_folders, photos, texts):
    folder, model, processor, padding = twin_folders[name]
    inputs = processor(text=texts, images=photos[:2], return_tensors="pt", **padding)
    with torch.inference_mode():
        want = model(**inputs).logits_per_image.numpy()

    embedder = load_embedder(f"hf:{folder}")
    cosines = embedder.embed_image(photos[:2]) @ embedder.embed_text(texts).T

    scale = embedder.logit_scale
    assert np.allclose(cosines * scale.scale + scale.bias, want, atol=1e-4)


def test_a_new_process_gives_the_same_vectors_offline_by_path_and_by_hub_id(
    twin_folders, photos, texts, tmp_path
):
    folder = twin_folders["clip"][0]
    cached = tmp_path / "home" / "hub" / "models--our--clip"
    shutil.copytree(folder, cached / "snapshots" / "0123abcd")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    photos[0].save(tmp_path / "photo.png")
    code = (
        "import sys, numpy as np\n"
        "from fourm_lite.embedders.load import load_embedder\n"
        "for number, spec in enumerate(sys.argv[2:]):\n"
        "    e = load_embedder(spec)\n"
        "    np.save(f'image{number}.npy', e.embed_image('photo.png'))\n"
        "    np.save(f'text{number}.npy', e.embed_text(sys.argv[1]))\n"
        "    print(e.space)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, texts[0], f"hf:{folder}", "hf:our/clip"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "home"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(sys.path),
        },
    )

    here = load_embedder(f"hf:{folder}")
    assert done.stdout.split() == [str(here.space)] * 2
    for number in range(2):
        image, text = (np.load(tmp_path / f"{kind}{number}.npy") for kind in ("image", "text"))
        assert np.allclose(image, here.embed_image(photos[0]), **CLOSE)
        assert np.allclose(text, here.embed_text(texts[0]), **CLOSE)


@pytest.mark.parametrize(("name", "prefix"), [("clip", 1), ("siglip", 0)])
def test_a_twin_encoder_gives_the_patches_of_its_image_tower(name, prefix, twin_folders, photos):
    folder, model, processor, _ = twin_folders[name]
    with torch.inference_mode():
        inputs = processor.image_processor(photos, return_tensors="pt")
        states = model.vision_model(**inputs).last_hidden_state.numpy()

    patches = load_embedder(f"hf:{folder}").embed_patches(photos)

    assert patches.shape == (4, 16, 32)
    assert np.allclose(patches, states[:, prefix:], **CLOSE)


def test_a_folder_of_older_sentence_transformers_is_opened(twin_folders, photos, texts, tmp_path):
    folder = twin_folders["clip"][0]
    shutil.copytree(folder, tmp_path / "0_CLIPModel")
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "0_CLIPModel"}]')

    ours, usual = (load_embedder(f"hf:{f}") for f in (tmp_path, folder))

    assert np.array_equal(ours.embed_image(photos), usual.embed_image(photos))
    assert np.array_equal(ours.embed_text(texts), usual.embed_text(texts))


def mofi_features(model, photos, size=32):
    """As MOFI's README computes them."""
    transforms = pytest.importorskip("torchvision.transforms")
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(size, antialias=False),
            transforms.CenterCrop(size),
            transforms.Normalize(mean, deviation),
        ]
    )
    with torch.inference_mode():
        pixels = torch.stack([transform(photo) for photo in photos])
        return unit(model.get_image_features(pixels).pooler_output)


def test_a_mofi_folder_without_preprocessing_takes_that_of_its_readme(
    twin_folders, photos, tmp_path, caplog
):
    _, model, processor, _ = twin_folders["clip"]
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)

    embedder = load_embedder(f"hf:{tmp_path}")
    explicit = load_embedder(f"hf:{tmp_path}?preprocess=mofi")

    assert "mofi" in caplog.text
    assert embedder.preprocess == explicit.preprocess
    assert embedder.preprocess.engine == "plain"
    assert embedder.preprocess.crop == (32, 32)
    batched, single = embedder.embed_image(photos), explicit.embed_image(photos, batch_size=1)
    want = mofi_features(model, photos)
    assert np.allclose(batched, want, **CLOSE)
    assert np.allclose(single, want, **CLOSE)
    assert embedder.can == ("image", "text", "patches")


DINOS = {
    "dinov2": (dinov2, 1),
    "dinov2 with registers": (lambda: dinov2(num_register_tokens=2), 3),
    "dinov3": (dinov3, 4),
}


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("name", DINOS)
def test_dino_gives_its_class_token_and_its_patch_map(name, photos, tmp_path):
    build, num_prefix = DINOS[name]
    model, pixels = build()
    model.save_pretrained(tmp_path)
    pixels.save_pretrained(tmp_path)
    with torch.inference_mode():
        states = model(**pixels(photos, return_tensors="pt")).last_hidden_state.numpy()

    embedder = load_embedder(f"hf:{tmp_path}")
    explicit = load_embedder(f"hf:{tmp_path}", output="class_token")

    raw = embedder.embed_image(photos, normalize=False)
    single = np.concatenate([embedder.embed_image(p, normalize=False) for p in photos])
    assert np.allclose(raw, states[:, 0], **CLOSE)
    assert np.allclose(single, states[:, 0], **CLOSE)
    assert np.allclose(explicit.embed_image(photos, normalize=False), raw, **CLOSE)
    assert np.allclose(embedder.embed_patches(photos), states[:, num_prefix:], **CLOSE)
    assert embedder.embed_patches(photos[:0]).shape == (0, 0, 32)
    mean = load_embedder(f"hf:{tmp_path}", output="mean_patch").embed_image(photos, normalize=False)
    assert np.allclose(mean, states[:, num_prefix:].mean(axis=1), **CLOSE)


@pytest.mark.usefixtures("seeded")
def test_a_convolutional_network_gives_its_pooled_vector_and_its_map(photos, tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    model = transformers.ResNetModel(config).eval()
    model.save_pretrained(tmp_path)

    embedder = load_hf(str(tmp_path), preprocess="imagenet")

    with torch.inference_mode():
        found = model(**embedder.preprocess.batch(photos))
    assert np.allclose(
        embedder.embed_image(photos, normalize=False), found.pooler_output[..., 0, 0]
    )
    assert embedder.embed_patches(photos).shape == (4, found.last_hidden_state[0, 0].numel(), 16)


@pytest.mark.usefixtures("seeded")
def test_a_pooler_without_weights_is_not_used(photos, tmp_path):
    config = transformers.ViTConfig(**VIT, image_size=32)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)

    embedder = load_embedder(f"hf:{tmp_path}")

    with torch.inference_mode():
        states = model.vit(**embedder.preprocess.batch(photos)).last_hidden_state
    raw = embedder.embed_image(photos, normalize=False)
    assert np.allclose(raw, states[:, 0].numpy(), **CLOSE)
    again = load_embedder(f"hf:{tmp_path}")
    assert np.array_equal(again.embed_image(photos, normalize=False), raw)


@pytest.mark.usefixtures("seeded")
def test_networks_that_return_tuples_work_too(twin_folders, photos, texts, tmp_path):
    folder, _, processor, _ = twin_folders["clip"]
    model = transformers.CLIPModel.from_pretrained(folder)
    model.config.return_dict = False
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    dino, pixels = dinov2()
    dino.config.return_dict = False
    dino.save_pretrained(tmp_path / "dino")
    pixels.save_pretrained(tmp_path / "dino")

    ours, usual = (load_embedder(f"hf:{f}") for f in (tmp_path / "clip", folder))

    assert np.allclose(ours.embed_image(photos), usual.embed_image(photos), **CLOSE)
    assert np.allclose(ours.embed_text(texts), usual.embed_text(texts), **CLOSE)
    assert load_embedder(f"hf:{tmp_path / 'dino'}").embed_patches(photos).shape == (4, 36, 32)


@pytest.mark.usefixtures("seeded")
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    model, pixels = dinov2()
    weights = {k: v for k, v in model.state_dict().items() if "layernorm" not in k}
    model.save_pretrained(tmp_path, state_dict=weights)
    pixels.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=r"no weights for 2 tensors.*layernorm"):
        load_embedder(f"hf:{tmp_path}")


@pytest.mark.usefixtures("seeded")
def test_text_for_an_image_only_network_is_refused_with_advice(tmp_path, photos):
    model, pixels = dinov2()
    model.save_pretrained(tmp_path)
    pixels.save_pretrained(tmp_path)
    embedder = load_embedder(f"hf:{tmp_path}")

    with pytest.raises(FourMError, match=r"cannot embed text.*dual encoder"):
        embedder.embed_text("a cat")
    assert embedder.can == ("image", "patches")


@pytest.mark.usefixtures("seeded")
def test_a_folder_without_preprocessing_or_weights_says_what_to_do(tmp_path):
    model, _ = dinov2()
    model.save_pretrained(tmp_path / "bare")
    (tmp_path / "pickled").mkdir()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")

    with pytest.raises(ConfigError, match=r"preprocessor_config\.json.*imagenet"):
        load_embedder(f"hf:{tmp_path / 'bare'}")
    with pytest.raises(CheckpointError, match="fourm-lite convert FILE -o OUT"):
        load_embedder(f"hf:{tmp_path / 'pickled'}")
    with pytest.raises(CheckpointError, match="no/such"):
        load_embedder("hf:no/such")
    with pytest.raises(CheckpointError, match="nothing' is no transformers folder"):
        load_embedder(f"hf:{tmp_path / 'nothing'}")


@pytest.mark.usefixtures("seeded")
def test_the_space_is_of_weights_preprocessing_and_output_not_of_the_path(tmp_path):
    model, pixels = dinov2()
    for folder in ("one", "two"):
        model.save_pretrained(tmp_path / folder)
        pixels.save_pretrained(tmp_path / folder)

    first, second = (load_embedder(f"hf:{tmp_path / f}").space for f in ("one", "two"))
    changed = load_embedder(f"hf:{tmp_path / 'one'}", output="mean_patch").space
    with torch.no_grad():
        model.layernorm.weight[0] += 1e-3
    model.save_pretrained(tmp_path / "two")
    trained = load_embedder(f"hf:{tmp_path / 'two'}").space

    first.require(second)
    assert len({first.fingerprint, changed.fingerprint, trained.fingerprint}) == 3
    with pytest.raises(ConfigError, match=trained.fingerprint[:12]):
        first.require(trained)


def test_the_files_that_a_processor_nests_are_read_too(twin_folders):
    folder = twin_folders["clip"][0]
    nested = json.loads((folder / "processor_config.json").read_text())

    assert "image_processor" in nested
    assert not (folder / "preprocessor_config.json").exists()
    assert load_embedder(f"hf:{folder}").preprocess.kind == "CLIP"


def text_network(folder, model_type, *, image=None):
    """A dual encoder whose texts go through a tower of that kind, with 34 rows of positions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config = transformers.AutoConfig.for_model(
        model_type, **TEXT, max_position_embeddings=34, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, type_vocab_size=2,
    )  # fmt: skip
    both = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(image_size=32, **VIT), config, projection_dim=24
    )
    transformers.VisionTextDualEncoderModel(both).eval().save_pretrained(folder)
    words = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "cat"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", bos_token="<s>",
        unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    ("kind", "kept"), [("xlm-roberta", 30), ("roberta", 30), ("camembert", 30), ("bert", 32)]
)
def test_a_long_text_is_cut_where_the_tower_tells_no_more_positions_apart(kind, kept, tmp_path):
    embedder = load_embedder(text_network(tmp_path, kind))

    long, same, shorter = embedder.embed_text(
        [" ".join(["cat"] * n) for n in (100, kept, kept - 1)]
    )

    assert np.allclose(long, same, **CLOSE)
    assert not np.allclose(long, shorter, **CLOSE)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("end", [7, 54, 300])
def test_a_text_tower_that_takes_all_sentences_for_one_is_refused(end, tmp_path):
    model, processor, _ = clip()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_embedder(f"hf:{tmp_path}").can == ("image", "text", "patches")

    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = end
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=f"eos_token_id={end}"):
        load_embedder(f"hf:{tmp_path}")


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("keep", [0.3, 0.99])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_truncated_file_is_told_in_our_words(file, keep, tmp_path):
    model, processor, _ = clip()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(keep * len(whole))])

    with pytest.raises(FourMError):
        load_embedder(f"hf:{tmp_path}")


@pytest.mark.usefixtures("seeded")
def test_inputs_that_the_network_has_no_argument_for_are_left_out(photos, tmp_path):
    model, _ = dinov2()
    model.save_pretrained(tmp_path)
    transformers.SamImageProcessorPil(
        size={"longest_edge": 42}, pad_size={"height": 42, "width": 42}
    ).save_pretrained(tmp_path)
    assert load_embedder(f"hf:{tmp_path}").embed_image(photos).shape == (4, 32)

    transformers.Pix2StructImageProcessorPil(max_patches=8).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="flattened_patches"):
        load_embedder(f"hf:{tmp_path}").embed_image(photos)


@pytest.mark.usefixtures("seeded")
def test_a_tokenizer_that_knows_more_words_than_its_tower_is_refused(tmp_path):
    spec = text_network(tmp_path, "bert")
    config = json.loads((tmp_path / "tokenizer.json").read_text())
    config["model"]["vocab"]["a"] = 5000
    config["model"]["vocab"]["a"] = 4999
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match="different models"):
        load_embedder(spec)
