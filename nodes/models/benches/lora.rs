//! What it costs to put a LoRA on Stable Diffusion 1.5, beside one sampling step with it, both at full
//! size on random weights: at most 5 % is asked.
//!
//! ```sh
//! cargo bench -p kosmograph-models --bench lora
//! ```
//!
//! The LoRA is what kohya's scripts train by default: rank 16 on the 192 matrices of the U-Net's
//! transformers and the 72 of CLIP's. Putting it on is everything from its file to a network that is
//! ready; the step is one call of the U-Net for guidance at 512 × 512. Takes about 6 GB of memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use kosmograph_models::Weights;
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::lora::{Adapted, Lora};
use kosmograph_models::stable_diffusion::unet::UNet;

mod full_size;

use full_size::{processor, random, weights};

const RANK: usize = 16;

/// The tensors of a kohya LoRA for the matrices of `weights` that `takes` takes.
fn lora(weights: &Weights, prefix: &str, takes: fn(&str) -> bool) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    for name in weights.names() {
        let Some(module) = name.strip_suffix(".weight").filter(|module| takes(module)) else {
            continue;
        };
        let shape = weights.shape(&name).expect("a shape");
        let flat = format!("{prefix}{}", module.replace('.', "_"));
        let kernel = vec![1; shape.len() - 2];
        let up = [&[shape[0], RANK], &kernel[..]].concat();
        let down = [&[RANK, shape[1]], &kernel[..]].concat();
        tensors.insert(format!("{flat}.lora_up.weight"), random(&up, 0.01));
        tensors.insert(format!("{flat}.lora_down.weight"), random(&down, 0.01));
        let alpha = Tensor::new(8f32, &Device::Cpu).expect("a number");
        tensors.insert(format!("{flat}.alpha"), alpha);
    }
    tensors
}

fn put_on(
    file: &Path,
    unet: &Adapted<UNet>,
    clip: &Adapted<ClipText>,
) -> (Adapted<UNet>, Adapted<ClipText>) {
    let lora = Lora::open(file).expect("the LoRA");
    assert_eq!((lora.unet.len(), lora.text_encoder.len()), (192, 72));
    let (unet, absent) = unet.with(&lora.unet, 0.8).expect("it fits");
    let (clip, absent_too) = clip.with(&lora.text_encoder, 0.8).expect("it fits");
    assert!(absent.is_empty() && absent_too.is_empty());
    unet.get().expect("the U-Net");
    clip.get().expect("the text encoder");
    (unet, clip)
}

fn bench(criterion: &mut Criterion) {
    let config = full_size::unet();
    let load_unet = move |weights: &Weights| UNet::load(weights, &config);
    let text = full_size::clip_text();
    let load_clip = move |weights: &Weights| ClipText::load(&text, weights);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lora.safetensors");
    let (unet, clip) = (
        weights(&load_unet, DType::F32, &Device::Cpu),
        weights(&load_clip, DType::F32, &Device::Cpu),
    );
    let mut tensors = lora(&unet, "lora_unet_", |module| {
        module.contains("attentions") && !module.contains("norm")
    });
    tensors.extend(lora(&clip, "lora_te_", |module| {
        module.contains("_proj") || module.contains("mlp")
    }));
    candle_core::safetensors::save(&tensors, &file).expect("written");
    drop(tensors);
    let unet = Adapted::open(unet, &[], load_unet).expect("the U-Net");
    let clip = Adapted::open(clip, &[], load_clip).expect("the text encoder");
    // The base is in memory already when somebody puts a LoRA on.
    unet.get().expect("the U-Net");
    clip.get().expect("the text encoder");

    let times: RefCell<[Vec<Duration>; 2]> = RefCell::default();
    let work: RefCell<[[f64; 2]; 2]> = RefCell::default();
    let timed = |which: usize, iterations: u64, run: &mut dyn FnMut()| {
        (0..iterations)
            .map(|_| {
                let (start, before) = (Instant::now(), processor());
                run();
                let (time, after) = (start.elapsed(), processor());
                let work = &mut work.borrow_mut()[which];
                *work = [work[0] + after[0] - before[0], work[1] + after[1] - before[1]];
                times.borrow_mut()[which].push(time);
                time
            })
            .sum()
    };
    let mut group = criterion.benchmark_group("SD 1.5");
    group.sample_size(10);
    group.bench_function("a LoRA put on, rank 16, U-Net and text encoder", |bencher| {
        bencher.iter_custom(|iterations| {
            timed(0, iterations, &mut || drop(put_on(&file, &unet, &clip)))
        });
    });
    let (with_lora, _) = put_on(&file, &unet, &clip);
    let network = with_lora.get().expect("the U-Net");
    let (x, context) = (random(&[2, 4, 64, 64], 1.0), random(&[2, 77, 768], 1.0));
    let timestep = Tensor::new(&[500f32], &Device::Cpu).expect("a timestep");
    group.bench_function("one sampling step, latents [2, 4, 64, 64]", |bencher| {
        bencher.iter_custom(|iterations| {
            timed(1, iterations, &mut || {
                network.forward(&x, &timestep, &context, None).expect("a prediction");
            })
        });
    });
    group.finish();

    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let (mut times, work) = (times.into_inner(), work.into_inner());
    let [put_on, step] = &mut times;
    if !put_on.is_empty() && !step.is_empty() {
        let counts = [put_on.len(), step.len()].map(|count| count as f64);
        for (what, work, count) in [("put on", work[0], counts[0]), ("step", work[1], counts[1])] {
            let [user, system] = work.map(|seconds| seconds / count);
            println!("{what}: processor time {user:.2} s, and {system:.2} s in the system");
        }
        let (put_on, step) = (median(put_on), median(step));
        println!(
            "a LoRA put on: {put_on:.3} s; a sampling step: {step:.3} s; the ratio is {:.1} %, at most 5 % is asked",
            100.0 * put_on / step
        );
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
