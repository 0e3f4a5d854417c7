"""Makes of a random single-file checkpoint of Stable Diffusion 1.5 what the peers read, with the same numbers: whole.py runs
this in another Python.

    whole_model.py diffusers CHECKPOINT MERGES FOLDER    a folder in diffusers' layout, f32
    whole_model.py openvino FOLDER CONVERTED             optimum-intel's export of that folder, f32, for one picture of 512 x 512
    whole_model.py taesd FOLDER                          a tiny autoencoder in diffusers' layout, f32
    whole_model.py openvino-taesd FOLDER CONVERTED       its decoder for OpenVINO, f32, for the same picture
"""

import gzip
import json
import pathlib
import sys

UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": 512,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 1,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "do_lower_case": True,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}


def vocabulary(merges):
    """CLIP's tokens in their order: bytes, bytes that end a word, what the merges make, the marks of begin and end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # The other bytes are written as letters from 256 on.
    others = range(256 - len(printable))
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in others]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(pair.split()) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def diffusers_folder(checkpoint, merges, folder):
    from diffusers import StableDiffusionPipeline

    pairs = gzip.open(merges, "rt", encoding="utf-8").read().splitlines()
    files = {
        "model_index.json": INDEX,
        "unet/config.json": UNET,
        "vae/config.json": VAE,
        "text_encoder/config.json": TEXT,
        "scheduler/scheduler_config.json": SCHEDULER,
        "tokenizer/tokenizer_config.json": TOKENIZER,
        "tokenizer/vocab.json": vocabulary(pairs),
    }
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *pairs, ""]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    pipeline = StableDiffusionPipeline.from_single_file(
        checkpoint, config=str(folder), local_files_only=True, safety_checker=None, requires_safety_checker=False
    )
    for name in "unet", "vae", "text_encoder":
        getattr(pipeline, name).float().save_pretrained(folder / name, safe_serialization=True, max_shard_size="100GB")


def openvino_folder(folder, converted):
    from optimum.intel import OVStableDiffusionPipeline

    # Left to itself it would write large networks in eight bits.
    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, export=True, compile=False, load_in_8bit=False)
    pipeline.reshape(batch_size=1, height=512, width=512, num_images_per_prompt=1)
    pipeline.save_pretrained(converted)


def taesd_folder(folder):
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny().save_pretrained(folder, safe_serialization=True)


def openvino_taesd_folder(folder, converted):
    import openvino
    import torch
    from diffusers import AutoencoderTiny

    decoder = AutoencoderTiny.from_pretrained(folder).eval().decoder
    latents = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        model = openvino.convert_model(decoder, example_input=(latents,))
    model.reshape(list(latents.shape))
    openvino.save_model(model, converted / "decoder.xml", compress_to_fp16=False)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    make = {
        "diffusers": diffusers_folder,
        "openvino": openvino_folder,
        "taesd": taesd_folder,
        "openvino-taesd": openvino_taesd_folder,
    }
    make[kind](*map(pathlib.Path, paths))
