//! VAEDecodeTiled and VAEEncodeTiled: the autoencoder in tiles, for pictures that memory does not hold whole.

use node::*;

use crate::latent::{encoded, samples_for};

/// Decodes latents to pictures in tiles.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct VAEDecodeTiled {
    /// What is decoded.
    samples: Latent,
    /// The autoencoder that decodes.
    vae: Vae,
    /// The side of a tile in pixels. A picture of at most half of it is decoded whole.
    #[widget(default = 512, min = 64, max = 4096, step = 32)]
    tile_size: i64,
    /// What neighbours share, in pixels; at most a quarter of a tile.
    #[widget(default = 64, min = 0, max = 4096, step = 32)]
    overlap: i64,
    /// Of videos; pictures have no time.
    #[widget(default = 64, min = 8, max = 4096, step = 4)]
    temporal_size: i64,
    /// Of videos; pictures have no time.
    #[widget(default = 8, min = 4, max = 4096, step = 4)]
    temporal_overlap: i64,
}

impl VAEDecodeTiled {
    /// With the node's own defaults.
    pub fn of(samples: Latent, vae: Vae) -> Self {
        Self { samples, vae, tile_size: 512, overlap: 64, temporal_size: 64, temporal_overlap: 8 }
    }
}

impl Node for VAEDecodeTiled {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let _ = (self.temporal_size, self.temporal_overlap);
        let (tile, overlap) = latent_pixels(cx, &self.vae, self.tile_size, self.overlap)?;
        let samples = samples_for(cx, &self.vae, &self.samples)?;
        self.vae.0.decode_tiled(cx, samples, tile, overlap).map(Image)
    }
}

/// Encodes pictures to latents in tiles.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct VAEEncodeTiled {
    /// What is encoded; sides that are no multiple of the autoencoder's step are cut, centred.
    pixels: Image,
    /// The autoencoder that encodes.
    vae: Vae,
    /// The side of a tile in pixels. A picture of at most half of it is encoded whole.
    #[widget(default = 512, min = 64, max = 4096, step = 64)]
    tile_size: i64,
    /// What neighbours share, in pixels; at most a quarter of a tile.
    #[widget(default = 64, min = 0, max = 4096, step = 32)]
    overlap: i64,
    /// Of videos; pictures have no time.
    #[widget(default = 64, min = 8, max = 4096, step = 4)]
    temporal_size: i64,
    /// Of videos; pictures have no time.
    #[widget(default = 8, min = 4, max = 4096, step = 4)]
    temporal_overlap: i64,
}

impl Node for VAEEncodeTiled {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let _ = (self.temporal_size, self.temporal_overlap);
        let (tile, overlap) = latent_pixels(cx, &self.vae, self.tile_size, self.overlap)?;
        let samples = self.vae.0.encode_tiled(cx, self.pixels.0, tile, overlap)?;
        encoded(cx, &self.vae, samples)
    }
}

/// A tile and its overlap in latent pixels of `vae`.
fn latent_pixels(cx: &Context, vae: &Vae, tile: i64, overlap: i64) -> Result<(usize, usize)> {
    let downscale = vae.0.describe(cx)?["downscale"].as_i64().filter(|downscale| *downscale > 0);
    let downscale = downscale.ok_or_else(|| {
        Error::at("vae", "this VAE does not say by how much it makes pictures smaller")
    })?;
    let overlap = overlap.min(tile / 4);
    Ok(((tile / downscale).max(4) as usize, (overlap / downscale) as usize))
}
