//! The noise schedule a model was trained on.

use candle_core::{Result, Tensor, bail};
use kosmograph_kernels::linear_combination;

use super::scheduler_config::{Prediction, SchedulerConfig};

/// ᾱ shifted and scaled in their roots, so that the last step is pure noise and the first stays what it is. The last
/// one is not quite 0, which no σ would belong to: it is ComfyUI's.
pub fn zero_terminal_snr(alphas_cumprod: &[f64]) -> Vec<f64> {
    const LAST: f64 = 4.897_345_189_085_343_5e-8;
    let (Some(first), Some(last)) = (alphas_cumprod.first(), alphas_cumprod.last()) else {
        return Vec::new();
    };
    let (first, last) = (first.sqrt(), last.sqrt());
    let scale = first / (first - last);
    let rescaled = |alpha: &f64| ((alpha.sqrt() - last) * scale).powi(2);
    let mut rescaled: Vec<f64> = alphas_cumprod.iter().map(rescaled).collect();
    if let Some(alpha) = rescaled.last_mut() {
        *alpha = LAST;
    }
    rescaled
}

/// What a network is told of the noise level, from the place in the schedule that a sampler counts in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Timesteps {
    /// The place itself.
    #[default]
    Places,
    /// `factor` times the place, and `offset`: a schedule of some of the training's steps.
    Scaled { factor: f64, offset: f64 },
    /// ln σ / 4, whatever the place.
    QuarterLogSigma,
}

/// ᾱ for every training timestep, and what the model predicts.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub alphas_cumprod: Vec<f64>,
    pub prediction: Prediction,
    pub timesteps: Timesteps,
    /// Whether x₀ is a consistency model's (Luo et al., arXiv 2310.04378): see [`Schedule::consistent`].
    pub is_consistency: bool,
    /// log σ of every timestep as ComfyUI keeps it: see [`Schedule::sigma_f32`].
    log_sigmas: Vec<f32>,
}

impl Schedule {
    /// # Errors
    /// A `beta_schedule` other than "linear" or "scaled_linear", or numbers that give no schedule.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        if let Some((first, last)) = config.edm_sigmas {
            return Self::over_sigmas(first, last, config.prediction_type);
        }
        let steps = config.num_train_timesteps;
        let (start, end) = (config.beta_start as f32, config.beta_end as f32);
        // In f32 where diffusers computes in f32: the first ᾱ are so near 1 that the samplers' last
        // steps would show the difference.
        let betas: Vec<f32> = match config.beta_schedule.as_str() {
            "linear" => linspace(start, end, steps),
            "scaled_linear" => {
                let (start, end) = (config.beta_start.sqrt() as f32, config.beta_end.sqrt() as f32);
                linspace(start, end, steps).into_iter().map(|root| root * root).collect()
            }
            other => bail!(
                "scheduler_config.json: beta_schedule \"{other}\" is not supported; \"linear\" and \
                 \"scaled_linear\" are"
            ),
        };
        let mut product = 1f64;
        let cumulate = |beta: &f32| {
            product *= f64::from(1.0 - beta);
            f64::from(product as f32)
        };
        let alphas: Vec<f64> = betas.iter().map(cumulate).collect();
        let alphas =
            if config.rescale_betas_zero_snr { zero_terminal_snr(&alphas) } else { alphas };
        Self::from_alphas_cumprod(alphas, config.prediction_type)
    }

    /// The same, telling the network other timesteps.
    pub fn with_timesteps(self, timesteps: Timesteps) -> Self {
        Self { timesteps, ..self }
    }

    /// The same, x₀ that of a consistency model or not.
    pub fn with_consistency(self, is_consistency: bool) -> Self {
        Self { is_consistency, ..self }
    }

    /// A schedule over all σ from `sigma_min` to `sigma_max`, evenly in their logarithms, of a network that is told
    /// ln σ / 4 (Karras et al., arXiv 2206.00364).
    ///
    /// # Errors
    /// The noise levels do not rise, or not from above 0.
    pub fn over_sigmas(sigma_min: f64, sigma_max: f64, prediction: Prediction) -> Result<Self> {
        if !(sigma_min > 0.0 && sigma_max > sigma_min && sigma_max.is_finite()) {
            bail!(
                "the noise schedule is unusable: σ goes from {sigma_min} to {sigma_max}, but it must rise, and \
                 from above 0"
            );
        }
        let step = (sigma_max / sigma_min).ln() / 999.0;
        let sigma = |i: u32| (sigma_min.ln() + step * f64::from(i)).exp();
        let alphas = (0..1000).map(|i| 1.0 / (1.0 + sigma(i).powi(2))).collect();
        let schedule = Self::from_alphas_cumprod(alphas, prediction)?;
        Ok(schedule.with_timesteps(Timesteps::QuarterLogSigma))
    }

    /// Every `every`-th of the training's steps alone, the last among them: what a network is sampled over that was
    /// distilled for few steps. It is told the training's own timesteps.
    ///
    /// # Errors
    /// Fewer than two are left.
    pub fn every(&self, every: usize) -> Result<Self> {
        let every = every.max(1);
        let offset = every - 1;
        let alphas = self.alphas_cumprod.iter().skip(offset).step_by(every).copied().collect();
        let (factor, offset) = (every as f64, offset as f64);
        let schedule = Self::from_alphas_cumprod(alphas, self.prediction)?;
        Ok(schedule.with_timesteps(Timesteps::Scaled { factor, offset }))
    }

    /// What the network is told at a place in the schedule, where the noise level is σ.
    pub fn told(&self, timestep: f64, sigma: f64) -> f64 {
        match self.timesteps {
            Timesteps::Places => timestep,
            Timesteps::Scaled { factor, offset } => factor * timestep + offset,
            Timesteps::QuarterLogSigma => 0.25 * sigma.ln(),
        }
    }

    /// σ of what the network is told: [`Schedule::told`] the other way.
    pub fn sigma_of_told(&self, told: f64) -> f64 {
        match self.timesteps {
            Timesteps::Places => self.sigma(told),
            Timesteps::Scaled { factor, offset } => self.sigma((told - offset) / factor),
            Timesteps::QuarterLogSigma => (4.0 * told).exp(),
        }
    }

    /// # Errors
    /// Fewer than two values, or values that do not fall from below 1 to above 0.
    pub fn from_alphas_cumprod(alphas_cumprod: Vec<f64>, prediction: Prediction) -> Result<Self> {
        let inside = alphas_cumprod.iter().all(|&a| a > 0.0 && a < 1.0);
        if alphas_cumprod.len() < 2 || !inside || !alphas_cumprod.is_sorted_by(|a, b| a > b) {
            bail!(
                "the noise schedule is unusable: its {} values of alphas_cumprod must fall, and lie \
                 between 0 and 1",
                alphas_cumprod.len()
            );
        }
        let log_sigmas = log_sigmas(&alphas_cumprod);
        let timesteps = Timesteps::Places;
        Ok(Self { alphas_cumprod, prediction, timesteps, is_consistency: false, log_sigmas })
    }

    /// Timesteps of training.
    pub fn train_steps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// σ = √((1-ᾱ)/ᾱ) of an integer timestep.
    pub fn sigma_at(&self, timestep: usize) -> f64 {
        let alpha = self.alphas_cumprod[timestep.min(self.train_steps() - 1)];
        ((1.0 - alpha) / alpha).sqrt()
    }

    /// σ of any timestep, log-linear between the integers (k-diffusion).
    pub fn sigma(&self, timestep: f64) -> f64 {
        let timestep = timestep.clamp(0.0, (self.train_steps() - 1) as f64);
        let (low, part) = (timestep.floor() as usize, timestep.fract());
        let (a, b) = (self.sigma_at(low).ln(), self.sigma_at(low + 1).ln());
        ((1.0 - part) * a + part * b).exp()
    }

    /// As [`Schedule::sigma`], in f32 and operation by operation as ComfyUI computes it. Whether something
    /// that begins or ends on a step's own noise level acts in that step hangs on the last bit of both, so
    /// both must be computed so.
    pub fn sigma_f32(&self, timestep: f32) -> f32 {
        let timestep = timestep.clamp(0.0, (self.train_steps() - 1) as f32);
        let (low, high) = (timestep.floor() as usize, timestep.ceil() as usize);
        let part = timestep.fract();
        let log = (1.0 - part) * self.log_sigmas[low] + part * self.log_sigmas[high];
        // Rounded once, as the vectorised exponential of torch all but always is.
        f64::from(log).exp() as f32
    }

    /// σ where the share `percent` of the training's timesteps is over, as ComfyUI computes it: 0 is before
    /// all noise levels, 1 behind them.
    pub fn sigma_of_percent(&self, percent: f64) -> f32 {
        let last = (self.train_steps() - 1) as f64;
        match (percent, self.timesteps) {
            _ if percent <= 0.0 => f32::INFINITY,
            _ if percent >= 1.0 => 0.0,
            // The share is one of the training's timesteps, not of those that are left of them.
            (_, Timesteps::Scaled { factor, offset }) => {
                let told = ((1.0 - percent) * (factor * last + offset)) as f32;
                self.sigma_f32((told - offset as f32) / factor as f32)
            }
            _ => self.sigma_f32(((1.0 - percent) * last) as f32),
        }
    }

    /// What the network is told where the share `percent` of the training's timesteps is over.
    pub fn told_at_percent(&self, percent: f64) -> f64 {
        let last = (self.train_steps() - 1) as f64;
        match self.timesteps {
            Timesteps::Places => (1.0 - percent) * last,
            Timesteps::Scaled { factor, offset } => (1.0 - percent) * (factor * last + offset),
            Timesteps::QuarterLogSigma => 0.25 * self.sigma((1.0 - percent) * last).ln(),
        }
    }

    /// x₀ as a consistency model has it, from what the network makes of x (VE): at a small timestep it is x itself,
    /// more and more what the network says.
    fn consistent(&self, x: &Tensor, x0: &Tensor, told: f64) -> Result<Tensor> {
        const SIGMA_DATA: f64 = 0.5;
        const SCALING: f64 = 10.0;
        let (data, scaled) = (SIGMA_DATA * SIGMA_DATA, (told * SCALING).powi(2));
        let skip = data / (scaled + data);
        let out = (scaled / (scaled + data)).sqrt();
        linear_combination(&[(out, x0), (skip, x)])
    }

    /// The integer timestep whose σ is nearest, in logarithms (ComfyUI's discrete model sampling).
    pub fn timestep(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.ln();
        let distance = |t: usize| (self.sigma_at(t).ln() - log_sigma).abs();
        // σ rises with t, so the nearest stands beside the place where it would be inserted.
        let steps = self.train_steps();
        let (mut low, mut high) = (0, steps - 1);
        while low < high {
            let middle = (low + high) / 2;
            if self.sigma_at(middle) < sigma { low = middle + 1 } else { high = middle }
        }
        let nearest = if low > 0 && distance(low - 1) <= distance(low) { low - 1 } else { low };
        nearest as f64
    }

    /// The timestep whose σ this is, log-linear between the integers: the inverse of [`Schedule::sigma`].
    pub fn fractional_timestep(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let last = self.train_steps() - 1;
        let low = (0..last).rev().find(|&t| self.sigma_at(t).ln() <= log_sigma).unwrap_or(0);
        let (a, b) = (self.sigma_at(low).ln(), self.sigma_at(low + 1).ln());
        low as f64 + ((log_sigma - a) / (b - a)).clamp(0.0, 1.0)
    }

    /// √ᾱ x₀ + √(1-ᾱ) ε, the sample at training timestep `timestep`, for x₀ and unit noise of one shape.
    ///
    /// # Errors
    /// The timestep is not one of training, or the shapes differ.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, timestep: usize) -> Result<Tensor> {
        match self.alphas_cumprod.get(timestep) {
            Some(&alpha) => {
                linear_combination(&[(alpha.sqrt(), x0), ((1.0 - alpha).sqrt(), noise)])
            }
            None => bail!("timestep {timestep} is not below the training's {}", self.train_steps()),
        }
    }

    pub fn sigma_min(&self) -> f64 {
        self.sigma_at(0)
    }

    pub fn sigma_max(&self) -> f64 {
        self.sigma_at(self.train_steps() - 1)
    }

    /// ε from the model's output at `x` (VP), where x = α x₀ + σ ε.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn epsilon(&self, x: &Tensor, output: &Tensor, alpha: f64, sigma: f64) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => Ok(output.clone()),
            Prediction::VPrediction => linear_combination(&[(alpha, output), (sigma, x)]),
            Prediction::Sample => linear_combination(&[(1.0 / sigma, x), (-alpha / sigma, output)]),
            Prediction::Edm => linear_combination(&[(sigma, x), (-alpha, output)]),
        }
    }

    /// x₀ from the model's output at `x` (VP), where x = α x₀ + σ ε.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn x0(&self, x: &Tensor, output: &Tensor, alpha: f64, sigma: f64) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => {
                linear_combination(&[(1.0 / alpha, x), (-sigma / alpha, output)])
            }
            Prediction::VPrediction => linear_combination(&[(alpha, x), (-sigma, output)]),
            Prediction::Sample => Ok(output.clone()),
            Prediction::Edm => linear_combination(&[(alpha, x), (sigma, output)]),
        }
    }

    /// The network's output at `x` (VP) that means x₀: [`Schedule::x0`] the other way.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn output_for_x0(&self, x: &Tensor, x0: &Tensor, alpha: f64, sigma: f64) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => (x / sigma)? - (x0 * (alpha / sigma))?,
            Prediction::VPrediction => (x * (alpha / sigma))? - (x0 / sigma)?,
            Prediction::Sample => Ok(x0.clone()),
            Prediction::Edm => (x0 / sigma)? - (x * (alpha / sigma))?,
        }
    }

    /// α and σ of VP at a noise level σ of VE, of latents brought to spread 1.
    pub fn shares(&self, sigma: f64) -> (f64, f64) {
        let sigma = sigma / self.prediction.sigma_data();
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        (alpha, sigma * alpha)
    }

    /// x in VE of `x` in VP, at a noise level σ of VE.
    ///
    /// # Errors
    /// As the tensor library's.
    pub fn in_ve(&self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        x / (self.shares(sigma).0 / self.prediction.sigma_data())
    }

    /// A VE denoiser, x₀(x, σ), made of the network's output(x, timestep) in VP:
    /// the network sees x/√(σ²+1) (Karras et al., arXiv 2206.00364, table 1, "VP").
    pub fn denoised(
        &self,
        x: &Tensor,
        sigma: f64,
        network: &mut impl FnMut(&Tensor, f64) -> super::Result<Tensor>,
    ) -> super::Result<Tensor> {
        let [x0] = self.denoised_each(x, sigma, &mut |x, timestep| Ok([network(x, timestep)?]))?;
        Ok(x0)
    }

    /// As [`Schedule::denoised`], of a network that answers more than once: with guidance and without.
    pub fn denoised_each<const N: usize>(
        &self,
        x: &Tensor,
        sigma: f64,
        network: &mut impl FnMut(&Tensor, f64) -> super::Result<[Tensor; N]>,
    ) -> super::Result<[Tensor; N]> {
        let data = self.prediction.sigma_data();
        let (alpha, share) = self.shares(sigma);
        let scaled = (x * (alpha / data))?;
        let timestep = self.timestep(sigma);
        let mut outputs = network(&scaled, timestep)?;
        for output in &mut outputs {
            *output = self.x0(&scaled, output, alpha, share)?;
            if data != 1.0 {
                *output = (&*output * data)?;
            }
            if self.is_consistency {
                *output = self.consistent(x, output, self.told(timestep, sigma))?;
            }
        }
        Ok(outputs)
    }
}

/// log σ in f32 of every timestep. ComfyUI computes Stable Diffusion's schedule in f64 where diffusers
/// computes it in f32: the one stands for the other here, which ᾱ near 1 would show.
fn log_sigmas(alphas_cumprod: &[f64]) -> Vec<f32> {
    let known = SchedulerConfig::default();
    let (start, end) = (known.beta_start.sqrt(), known.beta_end.sqrt());
    let last = (known.num_train_timesteps - 1) as f64;
    let mut product = 1f64;
    let exact = (0..known.num_train_timesteps).map(|t| {
        let root = start + (end - start) * t as f64 / last;
        product *= 1.0 - root * root;
        product
    });
    let exact: Vec<f64> = exact.collect();
    let same = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b;
    let is_known =
        alphas_cumprod.len() == exact.len() && alphas_cumprod.iter().zip(&exact).all(same);
    let alphas = if is_known { &exact } else { alphas_cumprod };
    alphas.iter().map(|alpha| (((1.0 - alpha) / alpha).sqrt().ln()) as f32).collect()
}

/// `torch.linspace` in f32 as its vectorised form computes it, every product fused with its sum: from both
/// ends to the middle.
pub(super) fn linspace_fused(start: f32, end: f32, steps: usize) -> Vec<f32> {
    if steps < 2 {
        return vec![start; steps];
    }
    let step = (end - start) / (steps - 1) as f32;
    let value = |i: usize| match i < steps / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((steps - 1 - i) as f32, end),
    };
    (0..steps).map(value).collect()
}

/// `torch.linspace` in f32: from both ends to the middle.
fn linspace(start: f32, end: f32, steps: usize) -> Vec<f32> {
    if steps < 2 {
        return vec![start; steps];
    }
    let step = (end - start) / (steps - 1) as f32;
    let value = |i: usize| match i < steps / 2 {
        true => start + step * i as f32,
        false => end - step * (steps - 1 - i) as f32,
    };
    (0..steps).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestep_and_sigma_are_inverse() {
        let schedule = Schedule::new(&SchedulerConfig::default()).unwrap();
        for t in 0..1000 {
            assert_eq!(schedule.timestep(schedule.sigma(t as f64)), t as f64);
            let half = (t as f64 + 0.5).min(999.0);
            assert!((schedule.fractional_timestep(schedule.sigma(half)) - half).abs() < 1e-6);
        }
        assert!((schedule.sigma_max() - 14.6146).abs() < 1e-3);
        assert!((schedule.sigma_min() - 0.0292).abs() < 1e-3);
    }

    #[test]
    fn reads_a_file_that_python_wrote_and_names_what_it_cannot_do() {
        let text = r#"{"beta_end": 0.01, "lambda_min_clipped": -Infinity, "trained_betas": null}"#;
        let config = SchedulerConfig::from_json(text, "scheduler_config.json").unwrap();
        assert_eq!((config.beta_end, config.num_train_timesteps), (0.01, 1000));
        for (text, key) in [
            (r#"{"trained_betas": [0.1]}"#, "trained_betas"),
            (r#"{"beta_schedule": "squaredcos_cap_v2"}"#, "beta_schedule"),
            (r#"{"prediction_type": "flow"}"#, "prediction_type"),
            (r#"{"num_train_timesteps": 1000000000000}"#, "`num_train_timesteps` is 1000000000000"),
            (r#"{"num_train_timesteps": 200000}"#, "at most 100000"),
        ] {
            let error = SchedulerConfig::from_json(text, "scheduler_config.json").unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn a_distilled_schedule_is_told_the_trainings_timesteps() {
        let whole = Schedule::new(&SchedulerConfig::default()).unwrap();
        let few = whole.every(20).unwrap();
        assert_eq!(few.train_steps(), 50);
        for (place, told) in [(0, 19), (1, 39), (49, 999)] {
            assert_eq!(few.sigma_at(place), whole.sigma_at(told));
            assert_eq!(few.told(place as f64, few.sigma_at(place)), told as f64);
        }
        assert_eq!(few.told_at_percent(0.0), 999.0);
        // A quarter of 999 timesteps is over at 749.25, which is the place 36.5125.
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-5 * b, "{a} is not {b}");
        near(f64::from(few.sigma_of_percent(0.25)), few.sigma(36.5125));
        assert!(whole.every(600).is_err());
    }

    #[test]
    fn a_schedule_over_sigmas_tells_their_logarithm() {
        let schedule = Schedule::over_sigmas(0.002, 120.0, Prediction::VPrediction).unwrap();
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} is not {b}");
        near(schedule.sigma_min(), 0.002);
        near(schedule.sigma_max(), 120.0);
        near(schedule.sigma_at(500), 0.002 * 60000f64.powf(500.0 / 999.0));
        near(schedule.told(0.0, 3.0), 0.25 * 3f64.ln());
        near(schedule.told_at_percent(0.0), 0.25 * 120f64.ln());
        for (first, last) in [(0.0, 1.0), (2.0, 1.0), (1.0, f64::INFINITY), (f64::NAN, 1.0)] {
            let error = Schedule::over_sigmas(first, last, Prediction::Epsilon).unwrap_err();
            assert!(error.to_string().contains("σ goes from"), "{error}");
        }
    }

    #[test]
    fn a_rising_schedule_is_refused() {
        let error = Schedule::from_alphas_cumprod(vec![0.1, 0.9], Prediction::Epsilon).unwrap_err();
        assert!(error.to_string().contains("must fall"));
    }
}
