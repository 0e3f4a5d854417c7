//! An autoencoder of pictures: it learns to give back what it is shown, through latents that are near normal ones (Rombach et
//! al., arXiv 2112.10752, without the discriminator and the perceptual part). For what helps where pictures are few, see
//! [`AutoencoderConfig`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::vae::Vae;
use serde_json::{Value, json};

use crate::anew;
use crate::config::{AutoencoderConfig, Config, SamplesConfig};
use crate::data::{self, Cut};
use crate::diffusion::{random, save};
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::parameters::{Gradients, Parameters};
use crate::run::{Learner, Watch};
use crate::{ask_for_all, files};

/// How much the latents' distance from normal ones weighs.
const KL: f64 = 1e-3;
/// The side of the squares whose mean colour counts by itself.
const COARSE: usize = 4;
/// Pictures that the spread of the latents is measured on.
const MEASURED: usize = 64;

/// The autoencoder that learns, and what from.
pub(crate) struct Autoencoder<'a> {
    config: &'a Config,
    vae: Vae,
    parameters: Parameters,
    paths: Vec<PathBuf>,
    cut: Cut,
    /// Its config.json.
    described: Value,
}

impl<'a> Autoencoder<'a> {
    /// Reads the model and finds the pictures.
    pub fn prepare(config: &'a Config, watch: &mut dyn Watch) -> Result<Autoencoder<'a>> {
        let device = Device::Cpu;
        let checkpoint = Checkpoint::open(&config.model, &device)?;
        let (vae_config, weights) = checkpoint.vae()?;
        let beside = ["vae/config.json", "config.json"].map(|name| config.model.join(name));
        let described = match beside.iter().find(|path| path.is_file()) {
            Some(path) => {
                let failed = |source| Error::Read { path: path.clone(), source };
                let text = std::fs::read_to_string(path).map_err(failed)?;
                serde_json::from_str(&text)
                    .map_err(|error| Error::Config(format!("{}: {error}", path.display())))?
            }
            None => {
                return Err(Error::Config(format!(
                    "{} has no vae/config.json that says what its autoencoder is like; a folder in diffusers' layout would be \
                     right",
                    config.model.display()
                )));
            }
        };
        let load = |weights: &Weights| Vae::load(weights, &vae_config);
        let tensors = match config.anew {
            true => {
                let recording = Weights::recording();
                load(&recording)?;
                anew::tensors(&recording.recorded(), &mut Generator::new(config.seed))?
            }
            false => weights.load_kept(load)?.1,
        };
        ask_for_all("the autoencoder", tensors.values().map(|weight| weight.dims().to_vec()))?;
        let parameters = Parameters::of(&tensors, |_| true)?;
        let variables = parameters.replace_in(&tensors);
        let vae = load(&Weights::from_kept(weights.origin(), variables, &device))?;
        let paths = data::pictures(&config.pictures)?;
        if paths.is_empty() {
            let sentence = format!("{} holds no pictures", config.pictures.display());
            return Err(Error::Data(sentence));
        }
        // What is brought to the latents' size and back, and cut into the squares of a mean; both are powers of 2.
        let AutoencoderConfig { crop, colour, .. } = config.autoencoder;
        let step = match colour > 0.0 {
            true => vae_config.factor().max(COARSE),
            false => vae_config.factor(),
        };
        if !crop.is_multiple_of(step) {
            return Err(Error::Config(format!(
                "\"autoencoder.crop\" is {crop}; a multiple of {step} would be right for this autoencoder"
            )));
        }
        let cut = Cut { resolution: config.resolution, buckets: false, step };
        let count = parameters.count();
        watch.note(&format!("{} pictures; {count} numbers learn", paths.len()), false);
        Ok(Autoencoder { config, vae, parameters, paths, cut, described })
    }

    /// A picture by chance, [3, H, W] in −1..1. One that cannot be read is passed over.
    fn picture(&self, draws: &mut Draws) -> Result<Tensor> {
        const TRIES: usize = 1000;
        let mut last = String::new();
        for _ in 0..TRIES {
            let path = &self.paths[draws.below(self.paths.len())];
            match data::open(path) {
                Ok(picture) => {
                    let size = self.cut.size((picture.width() as usize, picture.height() as usize));
                    let mirrored = self.config.flip && draws.share() < 0.5;
                    let planes = data::planes(&data::cut_to(&picture, size)?, size, mirrored)?;
                    return Ok(((planes * 2.0)? - 1.0)?);
                }
                Err(reason) => last = format!("{}: {reason}", path.display()),
            }
        }
        Err(Error::Data(format!("no picture can be read; the last is {last}")))
    }
}

impl Autoencoder<'_> {
    /// What pass number `pass` sees, [B, 3, H, W]: whole pictures, or squares of more.
    fn batch(&self, pass: usize, draws: &mut Draws) -> Result<Tensor> {
        let Config { batch, steps, accumulate, autoencoder, .. } = self.config;
        let side = autoencoder.crop;
        let is_cropped = (pass as f64) < autoencoder.cropped * (steps * accumulate) as f64;
        let (mut seen, mut count) = (Vec::new(), *batch);
        while seen.len() < count {
            let picture = self.picture(draws)?;
            let (_, height, width) = picture.dims3()?;
            seen.push(if is_cropped && side <= height.min(width) {
                count = batch * (height * width / (side * side));
                let (y, x) = (draws.below(height - side + 1), draws.below(width - side + 1));
                // A copy: the whole of each would be kept otherwise.
                picture.narrow(1, y, side)?.narrow(2, x, side)?.force_contiguous()?
            } else {
                picture
            });
        }
        Ok(Tensor::stack(&seen, 0)?)
    }
}

/// How far pictures are from what they should be, by their difference [B, 3, H, W]; a scalar.
fn distance(difference: &Tensor, asked: &AutoencoderConfig) -> Result<Tensor> {
    let mut sum = difference.abs()?.mean_all()?;
    if asked.square > 0.0 {
        sum = (sum + (difference.sqr()?.mean_all()? * asked.square)?)?;
    }
    if asked.edges > 0.0 {
        for dimension in [2, 3] {
            let others = difference.dim(dimension)? - 1;
            let [here, next] = [0, 1].map(|start| difference.narrow(dimension, start, others));
            sum = (sum + ((next? - here?)?.abs()?.mean_all()? * asked.edges)?)?;
        }
    }
    if asked.colour > 0.0 {
        let coarse = difference.avg_pool2d(COARSE)?;
        let colour = coarse.broadcast_sub(&coarse.mean_keepdim(1)?)?.sqr()?.mean_all()?;
        let coarse = (coarse.abs()?.mean_all()? + (colour * 2.0)?)?;
        sum = (sum + (coarse * asked.colour)?)?;
    }
    Ok(sum)
}

impl Learner for Autoencoder<'_> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn pass(&mut self, pass: usize) -> Result<(f64, Gradients)> {
        let mut draws = Draws::new(self.config.seed, pass as u64);
        let pictures = self.batch(pass, &mut draws)?;
        Gradients::of_loss(&self.parameters, || {
            let posterior = self.vae.encode(&pictures)?;
            let noise = random(&mut Generator::new(draws.next_u64()), posterior.mean().dims())?;
            let again = self.vae.decode(&posterior.sample(&noise)?)?;
            let apart = distance(&(again - &pictures)?, &self.config.autoencoder)?;
            // Half of mean² + variance − 1 − its logarithm, the mean over the latents' values.
            let variance = posterior.logvar().exp()?;
            let far = ((posterior.mean().sqr()? + variance)? - posterior.logvar())?;
            let far = ((far.mean_all()? - 1.0)? * 0.5)?;
            Ok((apart + (far * KL)?)?)
        })
    }

    /// The first pictures, each as it comes back.
    fn draw(&mut self, samples: &SamplesConfig, done: usize, watch: &mut dyn Watch) -> Result<()> {
        let count = samples.prompts.len().max(1);
        let folder = files::samples_folder(&self.config.output)?;
        for number in 0..count {
            let picture = self.picture(&mut Draws::new(samples.seed, number as u64))?;
            let latents = self.vae.encode(&picture.unsqueeze(0)?)?.mean().detach();
            let path = folder.join(format!("{done:06}-{number}.png"));
            save(&self.vae.decode(&latents)?.detach(), &path)?;
            watch.made(&path);
        }
        Ok(())
    }

    /// A folder in diffusers' layout; its scaling factor brings the spread of the latents of some of the pictures to 1.
    fn write(&self, metadata: BTreeMap<String, String>) -> Result<()> {
        let (mut sum, mut count) = (0f64, 0usize);
        for number in 0..self.paths.len().min(MEASURED) {
            let picture = self.picture(&mut Draws::new(!self.config.seed, number as u64))?;
            let latents = self.vae.encode(&picture.unsqueeze(0)?)?.mean().detach();
            sum += f64::from(latents.sqr()?.sum_all()?.to_scalar::<f32>()?);
            count += latents.elem_count();
        }
        let spread = (sum / count.max(1) as f64).sqrt();
        let mut described = self.described.clone();
        if spread.is_finite() && spread > 0.0 {
            described["scaling_factor"] = json!(1.0 / spread);
        }
        let tensors = self.parameters.iter();
        let tensors = tensors.map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let name = "diffusion_pytorch_model.safetensors";
        let beside = [("config.json", format!("{described:#}\n").into_bytes())];
        files::write_folder(&self.config.output, name, &tensors, &metadata, &beside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red that is 0.5 too much in the left half of a picture of 4 by 8.
    #[test]
    fn each_term_measures_what_it_says() -> Result<()> {
        let left = |at: usize| if at < 32 && at % 8 < 4 { 0.5f32 } else { 0.0 };
        let difference: Vec<f32> = (0..96).map(left).collect();
        let difference = Tensor::from_vec(difference, (1, 3, 4, 8), &Device::Cpu)?;
        let found = |asked: AutoencoderConfig| -> Result<f32> {
            Ok(distance(&difference, &asked)?.to_scalar()?)
        };
        let nothing = AutoencoderConfig::default();
        let plain = 0.5 / 6.0;
        // One step of seven from column to column, in one channel of three.
        let edges = 0.5 / 21.0;
        // Means of two squares in each channel: half of red is off; from the grey of 1/6 red is 1/3 away, the others 1/6.
        let colour = 0.5 / 6.0 + 2.0 * (1.0 / 9.0 + 2.0 / 36.0) / 6.0;
        let cases = [
            (nothing.clone(), plain),
            (AutoencoderConfig { square: 3.0, ..nothing.clone() }, plain + 3.0 * 0.25 / 6.0),
            (AutoencoderConfig { edges: 2.0, ..nothing.clone() }, plain + 2.0 * edges),
            (AutoencoderConfig { colour: 1.5, ..nothing }, plain + 1.5 * colour),
        ];
        for (asked, want) in cases {
            assert!((found(asked.clone())? - want).abs() < 1e-6, "{asked:?}");
        }
        Ok(())
    }
}
