//! The roofline of every CPU kernel, at the shapes of a Stable Diffusion 1.5 U-Net call with batch 2 at 64 × 64, as a
//! markdown table: operations, bytes, the floor that the processor sets, and what is reached.
//!
//! ```sh
//! cargo run --release -p kosmograph-kernels --example roofline            # or only rows that have a word:
//! cargo run --release -p kosmograph-kernels --example roofline attention
//! ```
//!
//! The floor is the larger of operations / (the fastest product of 2048³ measured now, ours or candle's) and bytes /
//! (the memory's rate in copying, measured now). Bytes are those of inputs and outputs, once. Operations are the
//! definition's, so Winograd's convolution, which needs a quarter of the multiplications, can go below the floor.

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use kosmograph_kernels as kernels;
use rayon::prelude::*;

const REPEAT: usize = 7;

/// The shortest of some runs, in seconds.
fn seconds(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..=REPEAT {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1., shape, &Device::Cpu)
}

struct Machine {
    /// What a row's work must have in it.
    word: String,
    /// Operations a second.
    arithmetic: f64,
    /// Bytes a second, read and written.
    memory: f64,
}

impl Machine {
    fn measure() -> Result<Machine> {
        let (a, b) = (random(&[2048, 2048])?, random(&[2048, 2048])?);
        let operations = 2. * 2048f64.powi(3);
        let ours = operations / seconds(|| kernels::linear(&a, &b, None).map(drop))?;
        let candle = operations / seconds(|| a.matmul(&b.t()?).map(drop))?;
        const VALUES: usize = 64 << 20;
        let (from, mut to) = (vec![1f32; VALUES], vec![0f32; VALUES]);
        let copying = seconds(|| {
            let chunk = 1 << 20;
            to.par_chunks_mut(chunk)
                .zip(from.par_chunks(chunk))
                .for_each(|(to, from)| to.copy_from_slice(from));
            black_box(&to);
            Ok(())
        })?;
        let machine = Machine {
            word: std::env::args().nth(1).unwrap_or_default(),
            arithmetic: ours.max(candle),
            memory: (2 * 4 * VALUES) as f64 / copying,
        };
        println!(
            "Product of 2048³: {:.0} GFLOPS (ours {:.0}, candle's {:.0}); copying {:.1} GB/s; {} threads; {:?}.\n",
            machine.arithmetic / 1e9,
            ours / 1e9,
            candle / 1e9,
            machine.memory / 1e9,
            rayon::current_num_threads(),
            kernels::Isa::get()?
        );
        println!(
            "| work | GFLOP | MB | floor, ms | reached, ms | GFLOPS | GB/s |\n|---|---|---|---|---|---|---|"
        );
        Ok(machine)
    }

    fn row(
        &self,
        work: &str,
        operations: usize,
        inputs: &[&Tensor],
        run: impl Fn() -> Result<Tensor>,
    ) -> Result<()> {
        if !work.contains(&self.word) {
            return Ok(());
        }
        let size = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let bytes = inputs.iter().map(|tensor| size(tensor)).sum::<usize>() + size(&run()?);
        let (operations, bytes) = (operations as f64, bytes as f64);
        let time = seconds(|| run().map(drop))?;
        let floor = (operations / self.arithmetic).max(bytes / self.memory);
        println!(
            "| {work} | {:.2} | {:.0} | {:.1} | {:.1} | {:.0} | {:.1} |",
            operations / 1e9,
            bytes / 1e6,
            floor * 1e3,
            time * 1e3,
            operations / time / 1e9,
            bytes / time / 1e9
        );
        Ok(())
    }

    fn convolution(
        &self,
        kernel: usize,
        stride: usize,
        batch: usize,
        channels: [usize; 2],
        size: usize,
    ) -> Result<()> {
        let [input, output] = channels;
        let x = random(&[batch, input, size, size])?;
        let (w, b) = (random(&[output, input, kernel, kernel])?, random(&[output])?);
        let out = size / stride;
        let operations = 2 * batch * output * out * out * input * kernel * kernel;
        let work = format!(
            "conv2d {kernel} × {kernel} / {stride}, {batch} × {input} → {output} at {size} × {size}"
        );
        self.row(&work, operations, &[&x, &w, &b], || {
            kernels::conv2d(&x, &w, Some(&b), stride, kernel / 2)
        })
    }

    fn linear(&self, rows: usize, input: usize, output: usize) -> Result<()> {
        let (x, w, b) = (random(&[rows, input])?, random(&[output, input])?, random(&[output])?);
        let work = format!("linear {rows} × {input} → {output}");
        self.row(&work, 2 * rows * input * output, &[&x, &w, &b], || {
            kernels::linear(&x, &w, Some(&b))
        })
    }

    fn attention(&self, heads: usize, queries: usize, keys: usize, width: usize) -> Result<()> {
        let split = |length: usize| random(&[2, length, heads, width])?.transpose(1, 2);
        let (q, k, v) = (split(queries)?, split(keys)?, split(keys)?);
        let work = format!("attention, {} heads of {width}, {queries} × {keys}", 2 * heads);
        self.row(&work, 8 * heads * queries * keys * width, &[&q, &k, &v], || {
            kernels::attention(&q, &k, &v, None, 0.1)
        })
    }
}

fn main() -> Result<()> {
    let machine = Machine::measure()?;
    for (channels, size) in
        [([320, 320], 64), ([640, 640], 32), ([1280, 1280], 16), ([1280, 1280], 8)]
    {
        machine.convolution(3, 1, 2, channels, size)?;
    }
    machine.convolution(3, 2, 2, [320, 320], 64)?;
    machine.convolution(1, 1, 2, [960, 320], 64)?;
    machine.convolution(3, 1, 1, [128, 128], 256)?;
    machine.convolution(3, 1, 2, [1280, 1280], 4)?;
    for (rows, input, output) in [
        (8192, 320, 320),
        (8192, 320, 2560),
        (2048, 640, 5120),
        (512, 1280, 10240),
        (128, 1280, 1280),
        (32, 1280, 1280),
    ] {
        machine.linear(rows, input, output)?;
    }
    for (queries, keys, width) in
        [(4096, 4096, 40), (4096, 77, 40), (4096, 4096, 64), (1024, 1024, 80), (256, 256, 160)]
    {
        machine.attention(8, queries, keys, width)?;
    }
    let (w, b) = (random(&[320])?, random(&[320])?);
    let x = random(&[2, 320, 64, 64])?;
    machine.row("group_norm, 2 × 320 × 64²", 8 * x.elem_count(), &[&x], || {
        kernels::group_norm(&x, &w, &b, 32, 1e-5)
    })?;
    machine.row("group_norm_silu, 2 × 320 × 64²", 20 * x.elem_count(), &[&x], || {
        kernels::group_norm_silu(&x, &w, &b, 32, 1e-5)
    })?;
    machine.row("silu, 2 × 320 × 64²", 12 * x.elem_count(), &[&x], || kernels::silu(&x))?;
    machine
        .row("gelu_erf, 2 × 320 × 64²", 16 * x.elem_count(), &[&x], || kernels::gelu_erf(&x))?;
    machine.row("quick_gelu, 2 × 320 × 64²", 13 * x.elem_count(), &[&x], || {
        kernels::quick_gelu(&x)
    })?;
    machine.row("upsample_nearest2d to 2 × 320 × 128²", 0, &[&x], || {
        kernels::upsample_nearest2d(&x, 128, 128)
    })?;
    let rows = random(&[8192, 320])?;
    machine.row("layer_norm, 8192 × 320", 8 * rows.elem_count(), &[&rows], || {
        kernels::layer_norm(&rows, &w, &b, 1e-5)
    })?;
    let hidden = random(&[8192, 2560])?;
    machine.row("geglu, 8192 × 2560 → 1280", 9 * hidden.elem_count(), &[&hidden], || {
        kernels::geglu(&hidden)
    })?;
    let (weight, bias) = (random(&[2560, 320])?, random(&[2560])?);
    let inputs = [&rows, &weight, &bias];
    machine.row(
        "linear and geglu, 8192 × 320 → 1280",
        2 * 8192 * 320 * 2560,
        &inputs,
        || kernels::linear_geglu(&rows, &weight, Some(&bias)),
    )?;
    let (up, down) = (random(&[1280, 16])?, random(&[16, 1280])?);
    let weight = random(&[1280, 1280])?;
    for weight in [weight.clone(), weight.to_dtype(DType::F16)?] {
        let work = format!("low_rank_update, 1280 × 1280 {}, rank 16", weight.dtype().as_str());
        machine.row(&work, 2 * 1280 * 1280 * 16, &[&weight, &up, &down], || {
            kernels::low_rank_update(&weight, &up, &down)
        })?;
    }
    Ok(())
}
