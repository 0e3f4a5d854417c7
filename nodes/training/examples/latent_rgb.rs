//! What colour each latent channel of a VAE has: the linear picture of its latents, fitted to pictures.
//!
//!     cargo run --release -p kosmograph-training --example latent_rgb -- models/tiny/sd/vae workflows/input
//!
//! prints "latent_rgb" and "latent_rgb_bias" for the config.json of a U-Net that works in these latents (node.h,
//! "describe/1"): previews are drawn with them. The task `export` writes them itself (`export.latent_rgb`).

use std::path::Path;

use kosmograph_training::latent_rgb::fit;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(vae), Some(pictures)) = (arguments.next(), arguments.next()) else {
        return Err("the folder of a VAE and one of pictures are missing".into());
    };
    let fitted = fit(Path::new(&vae), Path::new(&pictures), usize::MAX)?;
    println!("\"latent_rgb\": {},", serde_json::to_string(&fitted.factors)?);
    println!("\"latent_rgb_bias\": {},", serde_json::to_string(&fitted.bias)?);
    eprintln!("root of the mean square error, of -1..1: {:.3}", fitted.error);
    Ok(())
}
