//! The samplers against two judges: the numbers that ComfyUI's own code gives for a closed-form denoiser
//! and recorded noises (`data/samplers.json`, in f64), and problems whose solution is known.
//!
//! `data/make_samplers.py` makes the numbers.

mod comfyui;
mod known;
mod told;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::samplers::{
    self, Adaptive, BrownianTree, Ending, Error, Guided, Kind, NAMES, NoiseSampler, NoiseScale,
    Result, SAMPLERS, Schedule, SchedulerConfig, SecondOrder, Settings, Step, StepNoise, Tolerance,
    TorchNoise, Variant, sampler, sigmas,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    x: Vec<f64>,
    noises: Vec<Vec<f64>>,
    schedules: BTreeMap<String, Vec<f64>>,
    samplers: BTreeMap<String, Sampled>,
    brownian: BTreeMap<String, Vec<Increment>>,
    sigmas: BTreeMap<String, Vec<f64>>,
    /// Steps of "normal", one of them, a percent whose level is that step's all but to the bit, and whether
    /// the step's is above it (1), the same (0) or below (-1).
    ranges: Vec<(usize, usize, f64, i8)>,
}

#[derive(Deserialize)]
struct Sampled {
    draws: usize,
    x: Vec<f64>,
}

#[derive(Deserialize)]
struct Increment {
    sigma: f64,
    next: f64,
    values: Vec<f32>,
}

fn reference() -> Reference {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/samplers.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The noises of the reference, one after the other.
struct Recorded<'a> {
    noises: &'a [Vec<f64>],
    drawn: usize,
}

impl NoiseSampler for Recorded<'_> {
    fn sample(&mut self, _sigma: f64, _next: f64) -> Result<Tensor> {
        self.drawn += 1;
        let values = self.noises[self.drawn - 1].clone();
        Ok(Tensor::from_vec(values, (2, 1, 4, 4), &Device::Cpu)?)
    }
}

fn schedule() -> Schedule {
    Schedule::new(&SchedulerConfig::default()).unwrap()
}

/// x₀ for data of N(0.5, 0.7²), and the end of the probability-flow ODE from (x, σ).
const MEAN: f64 = 0.5;
const DEVIATION: f64 = 0.7;

fn gaussian(x: &Tensor, sigma: f64) -> Result<Tensor> {
    let (data, noise) = (DEVIATION * DEVIATION, sigma * sigma);
    Ok(x.affine(data / (data + noise), noise * MEAN / (data + noise))?)
}

/// The same with guidance and without.
fn alike(x: &Tensor, sigma: f64) -> Result<Guided> {
    let x0 = gaussian(x, sigma)?;
    Ok(Guided { uncond: x0.clone(), x0 })
}

fn flow(x: f64, sigma: f64, end: f64) -> f64 {
    let spread = |sigma: f64| DEVIATION.hypot(sigma);
    MEAN + (x - MEAN) * spread(end) / spread(sigma)
}

/// No noise: for samplers with η = 0.
struct Silence;

impl NoiseSampler for Silence {
    fn sample(&mut self, _sigma: f64, _next: f64) -> Result<Tensor> {
        Err(said("no noise is to be drawn"))
    }
}

/// An error of a caller's own.
fn said(what: &str) -> Error {
    Error::caller(std::io::Error::other(what.to_owned()))
}

type Method = fn(&[f64], Tensor) -> Result<Tensor>;

fn quiet(_: Step<'_>) -> Result<()> {
    Ok(())
}
