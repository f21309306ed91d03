"""Tiny networks with random weights, built by their own libraries, and folders that hold them.

Nothing here reaches the network: tokenizers are word lists, weights come from the global generator.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

transformers = pytest.importorskip("transformers")

WORDS = ["a", "photo", "of", "the", "cat", "dog", "red", "house", "big", "small", "."]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VIT = {**SMALL, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": 64}
OPEN_CLIP_TEXT = {
    "context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1
}  # fmt: skip
OPEN_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": OPEN_CLIP_TEXT,
}


def save_network(build, folder, seed=0):
    """A network and its processor in a folder, as their library writes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor, *_ = build()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_timm(model, architecture, arguments, edge, folder):
    """What timm's `save_for_hf` writes, without its network calls."""
    config = {**model.pretrained_cfg, "input_size": (3, edge, edge)}
    text = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "model_args": arguments,
        "pretrained_cfg": {k: v for k, v in config.items() if k not in ("url", "hf_hub_id")},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(text))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
    )


def save_open_clip(config, preprocess, folder):
    """An OpenCLIP model of random weights in a folder, as its library's `push_to_hf_hub` writes."""
    import open_clip

    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(**{k: config[k] for k in ("embed_dim", "vision_cfg", "text_cfg")})
    model.logit_scale.data.fill_(math.log(100.0))  # where training ends
    folder.mkdir(parents=True, exist_ok=True)
    text = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(text))
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def spread(model):
    """The model with weights further apart: its own start gives nearly equal scores."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def bert_tokenizer():
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocab)})


def clip_tokenizer():
    letters = list("abcdefghijklmnopqrstuvwxyz.")
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[])


def siglip_tokenizer():
    """SigLIP's need sentencepiece files; a word list with an end mark has the same interface."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids"],
    )


def siglip2_tokenizer():
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz."]
    return transformers.Siglip2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[])


def clip(image_size=32, patch_size=8):
    config = transformers.CLIPConfig(
        text_config={
            **TEXT,
            "max_position_embeddings": 40,
            "bos_token_id": 54,
            "eos_token_id": 55,
            "pad_token_id": 55,
        },
        vision_config={**VIT, "image_size": image_size, "patch_size": patch_size},
        projection_dim=24,
    )
    pixels = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
    )
    processor = transformers.CLIPProcessor(pixels, clip_tokenizer())
    return transformers.CLIPModel(config), processor, {"padding": True}


def siglip():
    config = transformers.SiglipConfig(
        text_config={**TEXT, "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**VIT, "image_size": 32},
    )
    pixels = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.SiglipProcessor(pixels, siglip_tokenizer())
    return transformers.SiglipModel(config), processor, {"padding": "max_length", "max_length": 64}


def siglip2():
    config = transformers.Siglip2Config(
        text_config={**TEXT, "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**VIT, "num_patches": 16},
    )
    pixels = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    processor = transformers.Siglip2Processor(pixels, siglip2_tokenizer())
    return transformers.Siglip2Model(config), processor, {"padding": "max_length"}


def align():
    config = transformers.AlignConfig(
        text_config={**TEXT, "max_position_embeddings": 64},
        vision_config={
            "image_size": 48,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.1,
            "hidden_dim": 32,
            "depth_divisor": 8,
        },
        projection_dim=80,  # what a width of 0.25 leaves of 320 channels
    )
    pixels = transformers.EfficientNetImageProcessorPil(
        size={"height": 52, "width": 52},
        crop_size={"height": 48, "width": 48},
        do_center_crop=True,
        rescale_offset=True,
        rescale_factor=1 / 127.5,
        include_top=False,
        do_normalize=False,
    )
    processor = transformers.AlignProcessor(pixels, bert_tokenizer())
    model = transformers.AlignModel(config)
    for module in model.modules():  # the library's own start shrinks a signal to 1e-18
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model, processor, {}


def dinov2(**extra):
    kind = transformers.Dinov2WithRegistersConfig if extra else transformers.Dinov2Config
    auto = transformers.Dinov2WithRegistersModel if extra else transformers.Dinov2Model
    config = kind(
        **{**VIT, "patch_size": 7}, image_size=42, mlp_ratio=2, layerscale_value=1.0, **extra
    )
    pixels = transformers.BitImageProcessorPil(
        size={"shortest_edge": 48},
        crop_size={"height": 42, "width": 42},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return auto(config).eval(), pixels


def dinov3():
    pytest.importorskip("torchvision", reason="transformers' DINOv3 processor needs torchvision")
    config = transformers.DINOv3ViTConfig(**VIT, image_size=32, num_register_tokens=3)
    pixels = transformers.DINOv3ViTImageProcessor(size={"height": 32, "width": 32})
    return transformers.DINOv3ViTModel(config).eval(), pixels


def blip():
    config = transformers.BlipConfig(
        text_config={
            **SMALL,
            "vocab_size": 32,
            "max_position_embeddings": 32,
            "encoder_hidden_size": 32,
            "pad_token_id": 0,
            "bos_token_id": 2,
        },
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    pixels = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.BlipProcessor(pixels, bert_tokenizer())
    model = spread(transformers.BlipForImageTextRetrieval(config))
    return model, processor, lambda output: output.itm_score.softmax(dim=1)[:, 1]


def vilt():
    config = transformers.ViltConfig(
        **SMALL,
        vocab_size=32,
        max_position_embeddings=32,
        image_size=64,
        patch_size=8,
        type_vocab_size=2,
        modality_type_vocab_size=2,
    )
    pixels = transformers.ViltImageProcessorPil(size={"shortest_edge": 48}, size_divisor=16)
    processor = transformers.ViltProcessor(pixels, bert_tokenizer())
    model = spread(transformers.ViltForImageAndTextRetrieval(config))
    return model, processor, lambda output: output.logits[:, 0]
