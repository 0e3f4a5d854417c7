//! Times one part of a picture on random weights in the real shapes: seconds, GFLOPS and peak memory.
//!
//! ```sh
//! cargo run --release -p kosmograph-models --example bench -- unet --latent 64 --batch 2 --repeat 3
//! ```
//!
//! Two calls, not counted, come first: one warms up, of the other `--profile` tells. GFLOPS are the operations of the definition (a multiplication and an
//! addition are two) in a second, whatever the kernels save of them.

#[path = "../benches/full_size/mod.rs"]
mod full_size;

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use full_size::{random, weights};
use kosmograph_kernels::profile::{Calls, profile, table};
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::kosmos::mllm::Mllm;
use kosmograph_models::stable_diffusion::unet::{Condition, UNet};
use kosmograph_models::stable_diffusion::vae::Vae;

/// Times one part of a picture on random weights in the real shapes
#[derive(Parser)]
struct Arguments {
    part: Part,
    /// Sides of the latents; a picture's are eight times as long
    #[arg(long, default_value_t = 64)]
    latent: usize,
    /// Rows of the batch; guidance takes two
    #[arg(long, default_value_t = 2)]
    batch: usize,
    /// The batch's latents alike, as guidance asks for them: the same ones under several texts
    #[arg(long)]
    guided: bool,
    /// Tokens of the prompt, pictures included (mllm)
    #[arg(long, default_value_t = 160)]
    tokens: usize,
    /// What the weights are kept in; activations are f32 on the CPU, and of this type in a U-Net or VAE on a GPU
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// cpu, or cuda:N in a build with the feature `cuda`
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: Device,
    /// Threads; as many as there are processors where it is not given
    #[arg(long)]
    threads: Option<usize>,
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Print first what each kernel took of a second call
    #[arg(long)]
    profile: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Part {
    /// One call of the U-Net
    Unet,
    /// One call of SDXL's U-Net; its pictures have latents of 128
    SdxlUnet,
    /// One call of the VAE's decoder on the whole latents
    VaeDecode,
    /// Kosmos-G's language model over a prompt, one row
    Mllm,
    /// CLIP's text encoder over 77 tokens
    Clip,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

fn device(name: &str) -> Result<Device, String> {
    match name.strip_prefix("cuda:").map(str::parse) {
        Some(Ok(number)) => Device::new_cuda(number).map_err(|error| error.to_string()),
        _ if name == "cpu" => Ok(Device::Cpu),
        _ => Err("a device is cpu or cuda:N".into()),
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let dtype = match arguments.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    };
    let (side, batch) = (arguments.latent, arguments.batch);
    let device = &arguments.device;
    let latents = match arguments.guided {
        true => random(&[1, 4, side, side], 1.0).repeat((batch, 1, 1, 1))?,
        false => random(&[batch, 4, side, side], 1.0),
    }
    .to_device(device)?;
    let run: Box<dyn Fn() -> Result<Tensor>> = match arguments.part {
        Part::Unet => {
            let config = full_size::unet();
            let load = |weights: &_| UNet::load(weights, &config);
            let unet = load(&weights(load, dtype, device))?;
            let context = random(&[batch, 77, 768], 1.0).to_device(device)?;
            let timestep = Tensor::new(&[500f32], device)?;
            Box::new(move || Ok(unet.forward(&latents, &timestep, &context, None)?))
        }
        Part::SdxlUnet => {
            let config = full_size::sdxl_unet();
            let load = |weights: &_| UNet::load(weights, &config);
            let unet = load(&weights(load, dtype, device))?;
            let context = random(&[batch, 77, 2048], 1.0).to_device(device)?;
            let pooled = random(&[batch, 1280], 1.0).to_device(device)?;
            let edge = 8.0 * side as f32;
            let sizes = Tensor::new(&[edge, edge, 0.0, 0.0, edge, edge], device)?;
            let sizes = sizes.unsqueeze(0)?;
            let timestep = Tensor::new(&[500f32], device)?;
            Box::new(move || {
                let (pooled, sizes) = (Some(&pooled), Some(&sizes));
                let condition = Condition { context: &context, pooled, sizes };
                Ok(unet.forward(&latents, &timestep, condition, None)?)
            })
        }
        Part::VaeDecode => {
            let config = full_size::vae();
            let load = |weights: &_| Vae::load(weights, &config);
            let vae = load(&weights(load, dtype, device))?;
            Box::new(move || Ok(vae.decode(&latents)?))
        }
        Part::Mllm => {
            let config = full_size::mllm();
            let load = |weights: &_| Mllm::load(&config, weights);
            let mllm = load(&weights(load, dtype, device))?;
            let ids = (0..arguments.tokens as u32).map(|i| 100 + i).collect();
            let tokens = Tensor::from_vec(ids, (1, arguments.tokens), device)?;
            Box::new(move || Ok(mllm.forward(&tokens, None)?))
        }
        Part::Clip => {
            let config = full_size::clip_text();
            let load = |weights: &_| ClipText::load(&config, weights);
            let clip = load(&weights(load, dtype, device))?;
            let ids = (0..77).map(|i| 100 + i as u32).collect::<Vec<_>>().repeat(batch);
            let ids = Tensor::from_vec(ids, (batch, 77), device)?;
            Box::new(move || Ok(clip.forward(&ids)?))
        }
    };
    // What is looked at is a warm call: the first has its memory from the system.
    run()?;
    device.synchronize()?;
    let start = Instant::now();
    let (result, calls) = profile(&run);
    result?;
    device.synchronize()?;
    let profiled = start.elapsed();
    let operations: u64 = calls.values().map(|calls| calls.operations).sum();
    // F(4 × 4, 3 × 3) multiplies a quarter of the definition's numbers, F(2 × 2, 3 × 3) four ninths.
    let of_winograd = |(name, calls): (&&str, &Calls)| match *name {
        name if name.ends_with("Winograd") => calls.operations / 4,
        name if name.ends_with("Winograd of 2x2") => calls.operations * 4 / 9,
        _ => calls.operations,
    };
    let after_winograd: u64 = calls.iter().map(of_winograd).sum();
    if arguments.profile {
        print!("{}", table(&calls, profiled));
    }
    let mut seconds = Vec::new();
    let before = processor_seconds();
    for _ in 0..arguments.repeat.max(1) {
        let start = Instant::now();
        run()?;
        // On a GPU a call only asks for the work.
        device.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    if let (Some(before), Some(after)) = (before, processor_seconds()) {
        let each = |i: usize| (after[i] - before[i]) / arguments.repeat.max(1) as f64;
        eprintln!(
            "processor seconds a call: {:.2} of the program, {:.2} of the system",
            each(0),
            each(1)
        );
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let gflops = operations as f64 / median / 1e9;
    let peak = peak_bytes().context("the system does not tell the peak memory")? as f64 / 1e9;
    if arguments.json {
        let figures = serde_json::json!({
            "part": format!("{:?}", arguments.part), "latent": side, "batch": batch,
            "dtype": format!("{:?}", arguments.dtype), "threads": rayon::current_num_threads(),
            "device": format!("{:?}", device.location()), "seconds": seconds, "median": median, "gflop": operations as f64 / 1e9,
            "gflop_after_winograd": after_winograd as f64 / 1e9,
            "gflops": gflops, "peak_gb": peak,
        });
        println!("{figures}");
    } else {
        let each: Vec<String> = seconds.iter().map(|seconds| format!("{seconds:.3}")).collect();
        println!(
            "{:?}: {} s, median {median:.3} s; {:.0} GFLOP, {gflops:.0} GFLOPS; peak {peak:.2} GB",
            arguments.part,
            each.join(" "),
            operations as f64 / 1e9,
        );
    }
    Ok(())
}

/// What the program's threads have spent by themselves and within the system.
fn processor_seconds() -> Option<[f64; 2]> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold anything, so the fields are counted from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok().map(|ticks| ticks / 100.0);
    Some([ticks(11)?, ticks(12)?])
}

fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
