#!/usr/bin/env python3
"""Writes networks.json and networks.safetensors: what transformers' networks make of weights that a formula gives, at small sizes and in the
published names. torch, transformers, numpy, safetensors, pillow and opencv are needed:

    nodes/vision/tests/data/make.py

Weights and pixels are not kept: `values` and `weights` stand in tests/formula.rs as well.
"""

import json
import pathlib
import tempfile

import cv2
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent


def values(name, count):
    """Numbers in -1..1 by a name, the same in f32 everywhere."""
    with np.errstate(over="ignore"):
        seed = np.uint32(2166136261)
        for byte in name.encode():
            seed = np.uint32((int(seed) ^ byte) * 16777619 & 0xFFFFFFFF)
        x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + seed
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def weights(name, shape):
    """A tensor of a network: matrices so that what goes through keeps its size, factors about 1, all else small."""
    v = values(name, int(np.prod(shape)))
    if len(shape) >= 2:
        v = v * np.float32(np.sqrt(3.0 / np.prod(shape[1:])))
    elif name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm3.weight", "norm4.weight", "Norm.weight", "attn.weight", "lambda1")):
        v = np.float32(1) + np.float32(0.2) * v
    else:
        v = np.float32(0.2) * v
    return v.reshape(shape).astype(np.float32)


def fill(model):
    """The network with numbers of the formula, by the names that its file has, and those with their shapes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = pathlib.Path(folder) / "model.safetensors"
        names = {name: list(tensor.shape) for name, tensor in load_file(file).items()}
        save_file({name: weights(name, shape) for name, shape in names.items()}, file, {"format": "pt"})
        return type(model).from_pretrained(folder).eval(), names


def picture_of(height, width):
    """A picture in 8 bits, [height, width, 3]: waves with noise."""
    noise = values(f"picture {height} {width}", height * width * 3).reshape(height, width, 3)
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    steps = ((x // 16 + y // 8 + c * 5) % 11).astype(np.float32) * np.float32(20)
    return np.clip(steps + noise * np.float32(24) + np.float32(20), 0, 255).astype(np.uint8)


def pixels(*shape):
    return torch.from_numpy(values("pixels", int(np.prod(shape))).reshape(shape) * np.float32(1.5))


def dinov2(swiglu):
    config = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=70, patch_size=14, use_swiglu_ffn=swiglu)
    model, names = fill(transformers.Dinov2Model(config))
    made = {"tokens": model(pixels(1, 3, 56, 84)).last_hidden_state}
    # From a picture to its features: the shorter side 256 by Pillow's cubic, the middle 224.
    picture = Image.fromarray(picture_of(90, 120)).resize((341, 256), Image.Resampling.BICUBIC)
    middle = np.asarray(picture, dtype=np.float32)[16:240, 58:282] / np.float32(255)
    middle = (middle - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    made["features"] = model(torch.from_numpy(middle).permute(2, 0, 1)[None]).pooler_output
    return names, made


def depth():
    backbone = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=1, mlp_ratio=2, image_size=70, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True)
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=64, patch_size=14, neck_hidden_sizes=[16, 24, 32, 40],
        fusion_hidden_size=16, head_hidden_size=8)
    model, names = fill(transformers.DepthAnythingForDepthEstimation(config))
    made = {"depth": model(pixels(1, 3, 70, 98)).predicted_depth}
    # From a picture to a hint, as the authors' infer_image and the preprocessor around it do.
    for height, width, resolution in [(72, 100, 64), (40, 61, 128)]:
        picture = picture_of(height, width)
        factor = 518 / min(height, width)
        size = [int(np.round(factor * side / 14)) * 14 for side in (height, width)]
        size = [side if side >= 518 else int(np.ceil(factor * old / 14)) * 14 for side, old in zip(size, (height, width))]
        large = cv2.resize(picture / 255.0, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        large = (large - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        large = torch.from_numpy(large.transpose(2, 0, 1).astype(np.float32))[None]
        depth = torch.nn.functional.interpolate(model(large).predicted_depth[:, None], (height, width), mode="bilinear", align_corners=True)[0, 0].numpy()
        levels = ((depth - depth.min()) / (depth.max() - depth.min()) * 255.0).astype(np.uint8)
        factor = resolution / min(height, width)
        to = (int(np.round(width * factor)), int(np.round(height * factor)))
        hint = cv2.resize(levels, to, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
        made[f"hint_{resolution}"] = torch.from_numpy(hint)
        made[f"pixels_{resolution}"] = large[0, :, ::37, ::41]
    return names, made


def authors(names):
    """The file that Depth Anything's authors publish: each of its names, and the ones of transformers that it holds one below another."""
    file = {}
    for name in names:
        if name.startswith("backbone.encoder.layer."):
            number, rest = name.removeprefix("backbone.encoder.layer.").split(".", 1)
            for old, new in [("attention.output.dense", "attn.proj"), ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma")]:
                rest = rest.replace(old, new)
            if rest.startswith("attention.attention."):
                part, end = rest.removeprefix("attention.attention.").split(".")
                qkv = file.setdefault(f"pretrained.blocks.{number}.attn.qkv.{end}", [])
                qkv.append((["query", "key", "value"].index(part), name))
                continue
            file[f"pretrained.blocks.{number}.{rest}"] = [(0, name)]
            continue
        for old, new in [
            ("backbone.embeddings.patch_embeddings.projection", "pretrained.patch_embed.proj"), ("backbone.embeddings.cls_token", "pretrained.cls_token"),
            ("backbone.embeddings.mask_token", "pretrained.mask_token"), ("backbone.embeddings.position_embeddings", "pretrained.pos_embed"),
            ("backbone.layernorm", "pretrained.norm"), ("head.conv1", "depth_head.scratch.output_conv1"),
            ("head.conv2", "depth_head.scratch.output_conv2.0"), ("head.conv3", "depth_head.scratch.output_conv2.2"),
        ] + [(f"neck.convs.{i}", f"depth_head.scratch.layer{i + 1}_rn") for i in range(4)] \
          + [(f"neck.fusion_stage.layers.{i}.{a}", f"depth_head.scratch.refinenet{4 - i}.{b}") for i in range(4) for a, b in [
              ("projection", "out_conv"), ("residual_layer1.convolution", "resConfUnit1.conv"), ("residual_layer2.convolution", "resConfUnit2.conv")]] \
          + [(f"neck.reassemble_stage.layers.{i}.{a}", f"depth_head.{b}.{i}") for i in range(4) for a, b in [("projection", "projects"), ("resize", "resize_layers")]]:
            if name.startswith(old):
                file[new + name.removeprefix(old)] = [(0, name)]
                break
        else:
            raise SystemExit(f"{name} has no name of the authors'")
    return {name: [part for _, part in sorted(parts)] for name, parts in file.items()}


def sam():
    vision = transformers.SamVisionConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, output_channels=32, image_size=128, patch_size=16, window_size=3,
        global_attn_indexes=[1], mlp_dim=512, num_pos_feats=16)
    prompts = transformers.SamPromptEncoderConfig(hidden_size=32, image_size=128, patch_size=16)
    # 1e-5 is the authors' number in the transformer of the decoder.
    decoder = transformers.SamMaskDecoderConfig(hidden_size=32, mlp_dim=2048, iou_head_hidden_dim=48, layer_norm_eps=1e-5)
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model, names = fill(transformers.SamModel(config))
    picture = pixels(1, 3, 128, 128)
    points = torch.tensor([[[[30.0, 40.0], [100.5, 90.0]]]])
    labels = torch.tensor([[[1, 0]]])
    box = torch.tensor([[[20.0, 10.0, 90.0, 100.0]]])
    made = {"states": model.get_image_embeddings(picture)}
    for name, asked in {
        "points": dict(input_points=points, input_labels=labels, multimask_output=True),
        "box": dict(input_boxes=box, multimask_output=False),
        "both": dict(input_points=points, input_labels=labels, input_boxes=box, multimask_output=True),
    }.items():
        answer = model(pixel_values=picture, **asked)
        made[f"{name}.masks"], made[f"{name}.quality"] = answer.pred_masks[0, 0], answer.iou_scores[0, 0]
    # From a picture to a mask: to the pixels by Pillow, as the authors' predictor does.
    small = np.asarray(Image.fromarray(picture_of(90, 120)).resize((128, 96), Image.Resampling.BILINEAR), dtype=np.float32)
    small = (small - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    square = torch.zeros(1, 3, 128, 128)
    square[0, :, :96] = torch.from_numpy(small).permute(2, 0, 1)
    made["pixels"] = square[0, :, ::9, ::7]
    at = torch.tensor([[[[60.0 * 128 / 120, 45.0 * 96 / 90]]]])
    answer = model(pixel_values=square, input_points=at, input_labels=torch.tensor([[[1]]]), multimask_output=True)
    best = answer.pred_masks[0, 0, answer.iou_scores[0, 0].argmax()]
    best = torch.nn.functional.interpolate(best[None, None], (128, 128), mode="bilinear", align_corners=False)[:, :, :96]
    best = torch.nn.functional.interpolate(best, (90, 120), mode="bilinear", align_corners=False)[0, 0]
    print("nearest to the edge", float(best.abs().min()), "share", float((best > 0).float().mean()))
    made["mask"] = (best > 0).to(torch.uint8)
    return names, made


def blip():
    text = dict(vocab_size=40, hidden_size=64, encoder_hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
                max_position_embeddings=24, bos_token_id=38, eos_token_id=3, pad_token_id=0, sep_token_id=3, is_decoder=True)
    vision = dict(hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    model, names = fill(transformers.BlipForConditionalGeneration(config))
    model.decoder_input_ids = 38
    picture = pixels(1, 3, 32, 32)
    begun = torch.tensor([[38, 11, 12, 3]])
    made = {}
    for name, ids in {"free": None, "begun": begun}.items():
        said = model.generate(pixel_values=picture, input_ids=ids, max_length=12, num_beams=1, do_sample=False)
        print(name, said.tolist())
        made[f"{name}.said"] = said[0]
    square = np.asarray(Image.fromarray(picture_of(90, 120)).resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / np.float32(255)
    square = (square - np.float32([0.48145466, 0.4578275, 0.40821073])) / np.float32([0.26862954, 0.26130258, 0.27577711])
    square = torch.from_numpy(square).permute(2, 0, 1)[None]
    made["pixels"] = square[0]
    made["caption"] = model.generate(pixel_values=square, input_ids=torch.tensor([[38, 5, 6, 3]]), max_length=9, num_beams=1, do_sample=False)[0]
    print("caption", made["caption"].tolist())
    seen = model.vision_model(picture).last_hidden_state
    scores = model.text_decoder(begun[:, :3], encoder_hidden_states=seen).logits
    print(torch.topk(scores[0, -1], 3))
    made["scores"] = scores
    return names, made


def clipseg(refined):
    text = dict(vocab_size=49408, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1)
    # Twelve layers, as the published ones have: the decoder looks behind the third, sixth and ninth.
    vision = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=12, num_attention_heads=1, image_size=48, patch_size=16)
    config = transformers.CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=32, reduce_dim=16, decoder_num_attention_heads=4,
        decoder_intermediate_size=48, use_complex_transposed_convolution=refined)
    model, names = fill(transformers.CLIPSegForImageSegmentation(config))
    # "a dog", "the red hat on the left", between CLIP's begin and end.
    texts = [[49406, 320, 1929, 49407], [49406, 518, 736, 3801, 525, 518, 1823, 49407]]
    rows = torch.tensor([row + [49407] * (8 - len(row)) for row in texts])
    picture = pixels(1, 3, 80, 80)
    made = {"scores": model(input_ids=rows, pixel_values=picture.expand(2, -1, -1, -1)).logits}
    if not refined:
        return names, made
    # From a picture to the probabilities: squeezed by Pillow's bilinear, and the scores enlarged.
    square = np.asarray(Image.fromarray(picture_of(90, 120)).resize((352, 352), Image.Resampling.BILINEAR), dtype=np.float32) / np.float32(255)
    square = (square - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    square = torch.from_numpy(square).permute(2, 0, 1)[None]
    made["pixels"] = square[0, :, ::29, ::31]
    scores = model(input_ids=torch.tensor(texts[:1]), pixel_values=square).logits
    large = torch.nn.functional.interpolate(scores.reshape(1, 1, 352, 352), (90, 120), mode="bilinear", align_corners=False)
    made["probabilities"] = torch.sigmoid(large)[0, 0]
    return names, made


@torch.no_grad()
def main():
    names, made = {}, {}
    for case, make in {"dinov2": lambda: dinov2(False), "dinov2_giant": lambda: dinov2(True), "depth": depth, "sam": sam, "blip": blip,
                       "clipseg": lambda: clipseg(False), "clipseg_refined": lambda: clipseg(True)}.items():
        names[case], tensors = make()
        for name, tensor in tensors.items():
            print(case, name, tuple(tensor.shape), float(tensor.to(torch.float32).abs().max()))
            made[f"{case}.{name}"] = (tensor if tensor.dtype == torch.uint8 else tensor.to(torch.float32)).contiguous().numpy()
    names["depth_authors"] = authors(names["depth"])
    (HERE / "networks.json").write_text(json.dumps(names, separators=(",", ":")) + "\n")
    save_file(made, HERE / "networks.safetensors", {"transformers": transformers.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
