//! Latents: an empty one, pictures to latents, latents to pictures.

use node::*;

/// An empty latent image: what text-to-image sampling begins from.
#[derive(Inputs)]
#[node(category = "latent", memory = [0.25, width, height, batch_size])]
pub struct EmptyLatentImage {
    /// Width of the picture in pixels.
    #[widget(default = 512, min = 16, max = 16384, step = 8)]
    width: i64,
    /// Height of the picture in pixels.
    #[widget(default = 512, min = 16, max = 16384, step = 8)]
    height: i64,
    /// Pictures that are made at once.
    #[widget(default = 1, min = 1, max = 4096)]
    batch_size: i64,
}

impl Node for EmptyLatentImage {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        // Stable Diffusion 1.5's latents: four channels, an eighth of the picture's size.
        let shape = [self.batch_size, 4, self.height / 8, self.width / 8].map(|n| n as usize);
        let samples = memory::filled("the latents", &shape, 0.0)?;
        Ok(Latent::new(Tensor::from_f32(&shape, samples)?))
    }
}

/// Decodes latents to pictures.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct VAEDecode {
    /// What is decoded.
    samples: Latent,
    /// The autoencoder that decodes.
    vae: Vae,
}

impl Node for VAEDecode {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        self.vae.0.decode(cx, self.samples.samples()?).map(Image)
    }
}

/// Decodes latents to pictures: VAEDecode by Kosmograph's own name.
#[derive(Inputs)]
#[node(category = "kosmograph")]
pub struct VaeDecode {
    /// What is decoded.
    samples: Latent,
    /// The autoencoder that decodes.
    vae: Vae,
}

impl Node for VaeDecode {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        VAEDecode { samples: self.samples, vae: self.vae }.run(cx)
    }
}

/// Encodes pictures to latents: what image-to-image sampling begins from.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct VAEEncode {
    /// What is encoded; sides that are no multiple of the autoencoder's step are cut, centred.
    pixels: Image,
    /// The autoencoder that encodes.
    vae: Vae,
}

impl Node for VAEEncode {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        self.vae.0.encode(cx, self.pixels.0).map(Latent::new)
    }
}
