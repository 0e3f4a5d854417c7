//! Latents: an empty one, pictures to latents, latents to pictures.

use node::*;

/// An empty latent image: what text-to-image sampling begins from.
#[derive(Inputs)]
#[node(category = "latent", memory = [0.25, width, height, batch_size])]
pub struct EmptyLatentImage {
    /// Width of the picture in pixels.
    #[widget(default = 512, min = 16, max = 16384, step = 8)]
    pub width: i64,
    /// Height of the picture in pixels.
    #[widget(default = 512, min = 16, max = 16384, step = 8)]
    pub height: i64,
    /// Pictures that are made at once.
    #[widget(default = 1, min = 1, max = 4096)]
    pub batch_size: i64,
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
    pub samples: Latent,
    /// The autoencoder that decodes.
    pub vae: Vae,
}

impl Node for VAEDecode {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let samples = samples_for(cx, &self.vae, &self.samples)?;
        self.vae.0.decode(cx, samples).map(Image)
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
    pub pixels: Image,
    /// The autoencoder that encodes.
    pub vae: Vae,
}

impl Node for VAEEncode {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let samples = self.vae.0.encode(cx, self.pixels.0)?;
        encoded(cx, &self.vae, samples)
    }
}

/// The samples of a latent at the scale of `vae`.
///
/// # Errors
/// The latent is none, or the autoencoder cannot say what it is.
pub fn samples_for(cx: &Context, vae: &Vae, latent: &Latent) -> Result<Tensor> {
    let at_samples = |error: Error| error.of_input("samples");
    if latent.scale().map_err(at_samples)?.is_none() {
        return latent.samples();
    }
    latent.at_scale(scale_of(cx, vae)?).map_err(at_samples)?.samples()
}

/// The latent of what `vae` made of pictures.
///
/// # Errors
/// The autoencoder cannot say what it is.
pub fn encoded(cx: &Context, vae: &Vae, samples: Tensor) -> Result<Latent> {
    Ok(Latent::new(samples).with_scale(scale_of(cx, vae)?))
}

/// What an autoencoder's latents are its network's times, where it says so.
///
/// # Errors
/// It describes itself, but not as node.h says.
pub fn scale_of(cx: &Context, vae: &Vae) -> Result<Option<f64>> {
    if !vae.0.offers("describe/1") {
        return Ok(None);
    }
    let description = vae.0.describe(cx).map_err(|error| error.of_input("vae"))?;
    let scale = description["scaling_factor"].as_f64();
    Ok(scale.filter(|scale| scale.is_finite() && *scale > 0.0))
}
