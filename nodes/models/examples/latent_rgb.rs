//! What colour each latent channel of a VAE has: the linear picture of its latents, fitted to pictures.
//!
//!     cargo run --release -p kosmograph-models --example latent_rgb -- models/tiny/sd/vae workflows/input/*.png
//!
//! prints "latent_rgb" and "latent_rgb_bias" for the config.json of a U-Net that works in these latents (node.h,
//! "describe/1"): previews are drawn with them. Pictures are PNGs of 8 bits, RGB or RGBA on white.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use clap::Parser;
use kosmograph_models::files::weights::Weights;
use kosmograph_models::stable_diffusion::vae::{Vae, VaeConfig};

#[derive(Parser)]
struct Arguments {
    /// A VAE's folder in diffusers' form
    vae: PathBuf,
    /// Pictures whose sides the VAE's factor divides
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
}

/// [1, 3, H, W] in -1..1.
fn picture(path: &Path) -> Result<Tensor> {
    let mut decoder = png::Decoder::new(BufReader::new(File::open(path)?));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().context("it is too large")?];
    let info = reader.next_frame(&mut bytes)?;
    let samples = info.color_type.samples();
    ensure!(samples >= 3, "{} is grey", path.display());
    let (width, height) = (info.width as usize, info.height as usize);
    let value = |c: usize, pixel: usize| {
        let at = |i: usize| f32::from(bytes[pixel * samples + i]) / 127.5 - 1.0;
        let alpha = if samples == 4 { (at(3) + 1.0) / 2.0 } else { 1.0 };
        at(c) * alpha + 1.0 - alpha
    };
    let pixels = (0..3).flat_map(|c| (0..width * height).map(move |pixel| (c, pixel)));
    let values: Vec<f32> = pixels.map(|(c, pixel)| value(c, pixel)).collect();
    Ok(Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)?)
}

/// Solves a · x = b by elimination; a is symmetric and positive.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = a[i].clone();
        for j in i + 1..n {
            let factor = a[j][i] / pivot[i];
            for (value, above) in a[j].iter_mut().zip(&pivot) {
                *value -= factor * above;
            }
            b[j] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let config = arguments.vae.join("config.json");
    let text = std::fs::read_to_string(&config)?;
    let config = VaeConfig::from_json(&text, &config.display().to_string())?;
    let file = arguments.vae.join("diffusion_pytorch_model.safetensors");
    let weights = Weights::open(&file, &Device::Cpu)?;
    let vae = Vae::load(&weights, &config)?;
    // For each latent pixel its channels and a one, and the mean colour of the pixels below it.
    let (mut rows, mut colours) = (Vec::new(), Vec::new());
    for path in &arguments.pictures {
        let image = picture(path)?;
        let latents = (vae.encode(&image)?.mode() * config.scaling_factor())?;
        let factor = image.dim(3)? / latents.dim(3)?;
        let small = image.avg_pool2d(factor)?;
        let channels = latents.dim(1)?;
        let by_pixel = |tensor: &Tensor, channels: usize| -> Result<Vec<Vec<f32>>> {
            Ok(tensor.reshape((channels, ()))?.t()?.to_vec2::<f32>()?)
        };
        for (latent, colour) in by_pixel(&latents, channels)?.into_iter().zip(by_pixel(&small, 3)?)
        {
            rows.push(latent.into_iter().map(f64::from).chain([1.0]).collect::<Vec<_>>());
            colours.push(colour);
        }
    }
    let n = rows[0].len();
    let products = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>();
    let a: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| products(i, j)).collect()).collect();
    let fits: Vec<Vec<f64>> = (0..3)
        .map(|c| {
            let b = |i: usize| {
                rows.iter().zip(&colours).map(|(row, to)| row[i] * f64::from(to[c])).sum()
            };
            solve(a.clone(), (0..n).map(b).collect())
        })
        .collect();
    let error: f64 = rows
        .iter()
        .zip(&colours)
        .flat_map(|(row, to)| (0..3).map(move |c| (row, to, c)))
        .map(|(row, to, c)| {
            let made: f64 = row.iter().zip(&fits[c]).map(|(x, factor)| x * factor).sum();
            (made - f64::from(to[c])).powi(2)
        })
        .sum();
    let triple = |i: usize| format!("[{:.4}, {:.4}, {:.4}]", fits[0][i], fits[1][i], fits[2][i]);
    let factors: Vec<String> = (0..n - 1).map(triple).collect();
    println!("\"latent_rgb\": [{}],", factors.join(", "));
    println!("\"latent_rgb_bias\": {},", triple(n - 1));
    eprintln!(
        "root of the mean square error, of -1..1: {:.3}",
        (error / rows.len() as f64 / 3.0).sqrt()
    );
    Ok(())
}
