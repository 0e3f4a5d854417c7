"""One picture from a text with diffusers' pipeline or optimum-intel's over OpenVINO, from the imports to the PNG: whole.py
runs this in another Python, and reads a line "step" after each step.

    whole_part.py diffusers|openvino FOLDER PROMPT STEPS GUIDANCE THREADS PNG [TAESD]

TAESD decodes instead of the whole autoencoder. optimum-intel has no pipeline with one, so there the latents are decoded by
OpenVINO behind the pipeline. Fails where a step was not one call of the U-Net with both halves of the guidance.
"""

import sys

kind, folder, prompt, steps, guidance, threads, picture, *tiny = sys.argv[1:]
steps, guidance, threads = int(steps), float(guidance), int(threads)

import torch

torch.set_num_threads(threads)
torch.manual_seed(1)
if kind == "diffusers":
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    if tiny:
        from diffusers import AutoencoderTiny

        pipeline.vae = AutoencoderTiny.from_pretrained(*tiny, local_files_only=True)
else:
    from optimum.intel import OVStableDiffusionPipeline

    # What the processor could do in bf16 is left out: the others compute in f32.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    # Each network is compiled when it is first used, so that the decoder that TAESD replaces costs nothing.
    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, device="CPU", ov_config=settings, compile=False)
pipeline.set_progress_bar_config(disable=True)

batches = []
network = pipeline.unet.forward


def counted(sample, *rest, **named):
    batches.append(len(sample))
    return network(sample, *rest, **named)


def told(pipeline, step, timestep, tensors):
    print("step", flush=True)
    return tensors


pipeline.unet.forward = counted
apart = tiny and kind == "openvino"
image = pipeline(
    prompt,
    negative_prompt="",
    height=512,
    width=512,
    num_inference_steps=steps,
    guidance_scale=guidance,
    callback_on_step_end=told,
    output_type="latent" if apart else "pil",
).images[0]
if apart:
    import openvino
    from PIL import Image

    decoder = openvino.Core().compile_model(f"{tiny[0]}/decoder.xml", "CPU", settings)
    latents = torch.as_tensor(image)[None].numpy()
    pixels = torch.from_numpy(decoder(latents)[0])[0].permute(1, 2, 0)
    # The decoder answers in the range of the autoencoder that it stands for, -1 to 1.
    image = Image.fromarray(((pixels + 1) * 127.5).round().clamp(0, 255).byte().numpy())
image.save(picture)
halves = 2 if guidance > 1 else 1
if batches != [halves] * steps:
    sys.exit(f"{steps} steps should be as many calls of the U-Net with {halves} latents, not {batches}")
