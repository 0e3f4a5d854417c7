//! UltimateSDUpscale: a picture made larger, and drawn anew tile by tile.

mod redraw;
mod tiles;

use kosmograph_models::samplers::{self, sigmas};
use kosmograph_pixels::pillow::{self, Filter, Picture};
use node::*;

use crate::upscale::{ImageUpscaleWithModel, three_channels};
use redraw::{Levels, Redraw, Step};
use tiles::{Order, Seams};

/// Makes a picture larger with a network and draws it anew tile by tile, each with what is around it; then, if wanted, the seams once more.
#[derive(Inputs)]
#[node(category = "image/upscaling")]
pub struct UltimateSDUpscale {
    /// What becomes larger.
    image: Image,
    /// What denoises.
    model: Model,
    /// What every tile should show. A ControlNet's hint is cut to the tile.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// To latents and back.
    vae: Vae,
    /// By how much; sides become multiples of 8.
    #[widget(default = 2.0, min = 0.05, max = 4.0, step = 0.05)]
    upscale_by: f64,
    /// What the noise is drawn from, the same for every tile.
    #[widget(seed, default = 0)]
    seed: u64,
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    #[widget(choices = samplers::NAMES, default = "euler")]
    sampler_name: String,
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// How much of a tile is drawn anew.
    #[widget(default = 0.2, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
    /// The network that makes it larger first.
    upscale_model: UpscaleModel,
    /// The order of the tiles; None draws none, for seams alone.
    #[widget(choices = Order::NAMES, default = "Linear")]
    mode_type: String,
    #[widget(default = 512, min = 64, max = 16384, step = 8)]
    tile_width: i64,
    #[widget(default = 512, min = 64, max = 16384, step = 8)]
    tile_height: i64,
    /// How softly a tile ends: the deviation of a Gaussian, in pixels.
    #[widget(default = 8, min = 0, max = 64, step = 1)]
    mask_blur: i64,
    /// How much around a tile it sees, in pixels.
    #[widget(default = 32, min = 0, max = 16384, step = 8)]
    tile_padding: i64,
    /// What is drawn over the seams: bands along them, half tiles, and where four meet.
    #[widget(choices = Seams::NAMES, default = "None")]
    seam_fix_mode: String,
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    seam_fix_denoise: f64,
    /// The width of a band.
    #[widget(default = 64, min = 0, max = 16384, step = 8)]
    seam_fix_width: i64,
    #[widget(default = 8, min = 0, max = 64, step = 1)]
    seam_fix_mask_blur: i64,
    #[widget(default = 16, min = 0, max = 16384, step = 8)]
    seam_fix_padding: i64,
    /// Draws every tile at one size, with more around it where the picture ends.
    #[widget(default = true)]
    force_uniform_tiles: bool,
    /// Decodes in tiles of 512 pixels.
    #[widget(default = false)]
    tiled_decode: bool,
}

impl Node for UltimateSDUpscale {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let (_, height, width, _) = self.image.dims();
        let side = |side: usize| ((side as f64 * self.upscale_by / 8.0).ceil() as usize).max(1) * 8;
        let (to_width, to_height) = (side(width), side(height));
        let batch = self.image.dims().0;
        memory::ask("the larger pictures", &[batch, to_height, to_width, 3], 2 * size_of::<f32>())?;
        let model = ImageUpscaleWithModel { upscale_model: self.upscale_model, image: self.image };
        let larger = Levels::of(&model.run(cx)?)?;
        let resize = |pixels: &[u8]| {
            let picture =
                Picture { pixels, width: larger.width, height: larger.height, channels: 3 };
            pillow::resize(picture, to_width, to_height, Filter::Lanczos)
        };
        let pictures = larger.pictures.iter().map(|picture| resize(picture));
        let picture = Levels {
            pictures: pictures.collect::<Result<_, _>>()?,
            width: to_width,
            height: to_height,
        };
        let (order, seams) = (Order::named(&self.mode_type), Seams::named(&self.seam_fix_mode));
        Redraw {
            model: self.model,
            positive: self.positive,
            negative: self.negative,
            vae: self.vae,
            seed: self.seed,
            steps: self.steps,
            cfg: self.cfg,
            sampler_name: self.sampler_name,
            scheduler: self.scheduler,
            order,
            tile: (self.tile_width as usize, self.tile_height as usize),
            tiles: Step::new(self.denoise, self.mask_blur, self.tile_padding),
            seams,
            seam: Step::new(self.seam_fix_denoise, self.seam_fix_mask_blur, self.seam_fix_padding),
            seam_width: self.seam_fix_width as usize,
            uniform: self.force_uniform_tiles,
            tiled_decode: self.tiled_decode,
        }
        .run(cx, picture)
    }
}

/// As UltimateSDUpscale, of a picture that is large already.
#[derive(Inputs)]
#[node(category = "image/upscaling")]
pub struct UltimateSDUpscaleNoUpscale {
    /// What is drawn anew.
    upscaled_image: Image,
    /// What denoises.
    model: Model,
    /// What every tile should show. A ControlNet's hint is cut to the tile.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// To latents and back.
    vae: Vae,
    /// What the noise is drawn from, the same for every tile.
    #[widget(seed, default = 0)]
    seed: u64,
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    #[widget(choices = samplers::NAMES, default = "euler")]
    sampler_name: String,
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// How much of a tile is drawn anew.
    #[widget(default = 0.2, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
    /// The order of the tiles; None draws none, for seams alone.
    #[widget(choices = Order::NAMES, default = "Linear")]
    mode_type: String,
    #[widget(default = 512, min = 64, max = 16384, step = 8)]
    tile_width: i64,
    #[widget(default = 512, min = 64, max = 16384, step = 8)]
    tile_height: i64,
    /// How softly a tile ends: the deviation of a Gaussian, in pixels.
    #[widget(default = 8, min = 0, max = 64, step = 1)]
    mask_blur: i64,
    /// How much around a tile it sees, in pixels.
    #[widget(default = 32, min = 0, max = 16384, step = 8)]
    tile_padding: i64,
    /// What is drawn over the seams: bands along them, half tiles, and where four meet.
    #[widget(choices = Seams::NAMES, default = "None")]
    seam_fix_mode: String,
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    seam_fix_denoise: f64,
    /// The width of a band.
    #[widget(default = 64, min = 0, max = 16384, step = 8)]
    seam_fix_width: i64,
    #[widget(default = 8, min = 0, max = 64, step = 1)]
    seam_fix_mask_blur: i64,
    #[widget(default = 16, min = 0, max = 16384, step = 8)]
    seam_fix_padding: i64,
    /// Draws every tile at one size, with more around it where the picture ends.
    #[widget(default = true)]
    force_uniform_tiles: bool,
    /// Decodes in tiles of 512 pixels.
    #[widget(default = false)]
    tiled_decode: bool,
}

impl Node for UltimateSDUpscaleNoUpscale {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let image = three_channels(&self.upscaled_image);
        let picture = Levels::of(&Image(image.map_err(|error| error.of_input("upscaled_image"))?))?;
        let (order, seams) = (Order::named(&self.mode_type), Seams::named(&self.seam_fix_mode));
        Redraw {
            model: self.model,
            positive: self.positive,
            negative: self.negative,
            vae: self.vae,
            seed: self.seed,
            steps: self.steps,
            cfg: self.cfg,
            sampler_name: self.sampler_name,
            scheduler: self.scheduler,
            order,
            tile: (self.tile_width as usize, self.tile_height as usize),
            tiles: Step::new(self.denoise, self.mask_blur, self.tile_padding),
            seams,
            seam: Step::new(self.seam_fix_denoise, self.seam_fix_mask_blur, self.seam_fix_padding),
            seam_width: self.seam_fix_width as usize,
            uniform: self.force_uniform_tiles,
            tiled_decode: self.tiled_decode,
        }
        .run(cx, picture)
    }
}
