"""One picture from a text with diffusers' pipeline or optimum-intel's over OpenVINO, from the imports to the PNG: whole.py
runs this in another Python, and reads a line "step" after each step.

    whole_part.py diffusers|openvino FOLDER PROMPT STEPS GUIDANCE THREADS PNG

Fails where a step was not one call of the U-Net with both halves of the guidance.
"""

import sys

kind, folder, prompt, steps, guidance, threads, picture = sys.argv[1:]
steps, guidance, threads = int(steps), float(guidance), int(threads)

import torch

torch.set_num_threads(threads)
torch.manual_seed(1)
if kind == "diffusers":
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    owner, call = pipeline.unet, "forward"
else:
    from optimum.intel import OVStableDiffusionPipeline

    # What the processor could do in bf16 is left out: the others compute in f32.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, device="CPU", ov_config=settings)
    owner, call = pipeline.unet, "forward"
pipeline.set_progress_bar_config(disable=True)

batches = []
network = getattr(owner, call)


def counted(sample, *rest, **named):
    batches.append(len(sample))
    return network(sample, *rest, **named)


def told(pipeline, step, timestep, tensors):
    print("step", flush=True)
    return tensors


setattr(owner, call, counted)
image = pipeline(
    prompt,
    negative_prompt="",
    height=512,
    width=512,
    num_inference_steps=steps,
    guidance_scale=guidance,
    callback_on_step_end=told,
).images[0]
image.save(picture)
halves = 2 if guidance > 1 else 1
if batches != [halves] * steps:
    sys.exit(f"{steps} steps should be as many calls of the U-Net with {halves} latents, not {batches}")
