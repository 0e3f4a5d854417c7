//! The samplers against two judges: the numbers that ComfyUI's own code gives for a closed-form denoiser
//! and recorded noises (`data/samplers.json`, in f64), and problems whose solution is known.
//!
//! `data/make_samplers.py` makes the numbers.

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

fn schedule() -> Schedule {
    Schedule::new(&SchedulerConfig::default()).unwrap()
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

#[test]
fn every_sampler_has_comfyuis_values() {
    let reference = reference();
    let schedule = schedule();
    let mut compared = 0;
    for (name, expected) in &reference.samplers {
        let (sampler, levels) = name.split_once('.').unwrap();
        let x = Tensor::from_vec(reference.x.clone(), (2, 1, 4, 4), &Device::Cpu).unwrap();
        let mut noise = Recorded { noises: &reference.noises, drawn: 0 };
        let mut model = |x: &Tensor, sigma: f64| {
            let (bounded, linear) = ((x / (1.0 + sigma))?.tanh()?, 1.0 / (1.0 + sigma * sigma));
            let x0 = ((&bounded * 0.8)? + (x * (0.3 * linear))?)?;
            let uncond = ((bounded * 0.5)? + x.affine(0.2 * linear, 0.1)?)?;
            Ok(Guided { x0, uncond })
        };
        let sigmas = &reference.schedules[levels];
        let observe = &mut |_: Step<'_>| Ok(());
        let found =
            samplers::sample_guided(sampler, &schedule, sigmas, x, &mut model, &mut noise, observe);
        let found = found.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let size = expected.x.iter().fold(0f64, |size, x| size.max(x.abs()));
        // DEIS's coefficients and LMS's integrals are made in f32 there.
        let bound = if matches!(sampler, "deis" | "lms") { 1e-4 } else { 1e-6 };
        for (found, expected) in found.iter().zip(&expected.x) {
            assert!((found - expected).abs() <= bound * size, "{name}: {found} for {expected}");
        }
        assert_eq!(noise.drawn, expected.draws, "{name}");
        compared += 1;
    }
    assert!(compared >= 180, "{compared}");
    // None is without values: those of the GPU are the same by another name.
    let held = |name: &str| {
        let name = sampler(name).unwrap().draws_on_gpu().unwrap_or(name);
        name == "ddim" || reference.samplers.contains_key(&format!("{name}.full"))
    };
    let open: Vec<_> = NAMES.iter().filter(|name| !held(name)).collect();
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_boundary_on_a_steps_level_is_compared_as_comfyui_does() {
    let (schedule, ranges) = (schedule(), reference().ranges);
    let mut uneven = 0;
    for (steps, step, percent, above) in &ranges {
        let level = sigmas::by_name("normal", &schedule, *steps).unwrap()[*step] as f32;
        let boundary = schedule.sigma_of_percent(*percent);
        let found = i8::from(level > boundary) - i8::from(level < boundary);
        assert_eq!(found, *above, "{percent} at step {step} of {steps}");
        uneven += usize::from(*above != 0);
    }
    assert!(ranges.len() > 200 && uneven > 20, "{} {uneven}", ranges.len());
}

#[test]
fn every_schedule_has_comfyuis_values() {
    let schedule = schedule();
    for (name, expected) in &reference().sigmas {
        let (scheduler, steps) = name.split_once('.').unwrap();
        let found = sigmas::by_name(scheduler, &schedule, steps.parse().unwrap()).unwrap();
        assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            // Both are made in f32 there; ᾱ near 1 shows it.
            assert!((found - expected).abs() <= 2e-5 * expected, "{name}: {found} for {expected}");
        }
    }
}

#[test]
fn the_brownian_tree_is_torchsdes() {
    for (seed, increments) in reference().brownian {
        let tree = BrownianTree::new(0.029_167_5, 14.614_642, 64, seed.parse().unwrap());
        for Increment { sigma, next, values } in increments {
            let found = tree.between(sigma, next);
            assert_eq!(found[..values.len()], values, "seed {seed}, from {sigma} to {next}");
        }
    }
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

/// The error at the end of `steps` steps, even in log σ: from so high that the first steps, of lower
/// order, see next to nothing of the data.
fn error_of(method: Method, steps: usize) -> f64 {
    let (high, low) = (1e4f64, 0.1f64);
    let level = |i: usize| high * (low / high).powf(i as f64 / steps as f64);
    let sigmas: Vec<f64> = (0..=steps).map(level).collect();
    let start = MEAN + 1.3 * high;
    let x = Tensor::full(start, (1, 1, 1, 1), &Device::Cpu).unwrap();
    let end = method(&sigmas, x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    (end[0] - flow(start, sigmas[0], sigmas[steps])).abs()
}

#[test]
fn deterministic_samplers_converge_at_their_order() {
    let methods: &[(&str, f64, Method)] = &[
        ("euler", 1.0, |s, x| samplers::euler(s, x, &mut gaussian, &mut quiet)),
        ("heun", 2.0, |s, x| samplers::heun(s, x, &mut gaussian, &mut quiet)),
        ("dpm_2", 2.0, |s, x| samplers::dpm_2(s, x, &mut gaussian, &mut quiet)),
        ("lms", 4.0, |s, x| samplers::lms(s, 4, x, &mut gaussian, &mut quiet)),
        ("dpmpp_2m", 2.0, |s, x| samplers::dpmpp_2m(s, x, &mut gaussian, &mut quiet)),
        ("deis", 3.0, |s, x| samplers::deis(s, x, &mut gaussian, &mut quiet)),
        // Its last step is of first order and uncorrected, which decides.
        ("uni_pc", 2.0, |s, x| samplers::uni_pc(s, Variant::Bh1, x, &mut gaussian, &mut quiet)),
        ("uni_pc_bh2", 2.0, |s, x| samplers::uni_pc(s, Variant::Bh2, x, &mut gaussian, &mut quiet)),
        ("euler_ancestral, η = 0", 1.0, |s, x| {
            samplers::euler_ancestral(s, 0.0, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("dpm_2_ancestral, η = 0", 2.0, |s, x| {
            samplers::dpm_2_ancestral(s, 0.0, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("dpmpp_2s_ancestral, η = 0", 2.0, |s, x| {
            samplers::dpmpp_2s_ancestral(s, 0.0, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("dpmpp_sde, η = 0", 2.0, |s, x| {
            samplers::dpmpp_sde(s, 0.0, 0.5, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("dpmpp_2m_sde, η = 0", 2.0, |s, x| {
            let form = SecondOrder::Midpoint;
            samplers::dpmpp_2m_sde(s, 0.0, form, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("dpmpp_2m_sde_heun, η = 0", 2.0, |s, x| {
            let form = SecondOrder::Heun;
            samplers::dpmpp_2m_sde(s, 0.0, form, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("heunpp2", 1.0, |s, x| samplers::heunpp2(s, x, &mut gaussian, &mut quiet)),
        // What ComfyUI's coefficients leave of four: see its documentation.
        ("ipndm_v", 2.0, |s, x| samplers::ipndm_v(s, x, &mut gaussian, &mut quiet)),
        ("res_multistep", 2.0, |s, x| {
            samplers::res_multistep(s, 0.0, x, &mut alike, &mut Silence, &mut quiet)
        }),
        ("gradient_estimation", 1.0, |s, x| {
            samplers::gradient_estimation(s, x, &mut alike, &mut quiet)
        }),
        ("euler_cfg_pp", 1.0, |s, x| {
            samplers::euler_ancestral_cfg_pp(s, 0.0, x, &mut alike, &mut Silence, &mut quiet)
        }),
        ("dpmpp_2s_ancestral_cfg_pp, η = 0", 2.0, |s, x| {
            samplers::dpmpp_2s_ancestral_cfg_pp(s, 0.0, x, &mut alike, &mut Silence, &mut quiet)
        }),
        ("dpmpp_2m_cfg_pp", 2.0, |s, x| samplers::dpmpp_2m_cfg_pp(s, x, &mut alike, &mut quiet)),
        ("seeds_2, η = 0", 2.0, |s, x| {
            samplers::seeds_2(s, 0.0, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("seeds_3, η = 0", 3.0, |s, x| {
            samplers::seeds_3(s, 0.0, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("sa_solver, τ = 0", 4.0, |s, x| {
            let settings = Settings { eta: 0.0, ..Settings::of_schedule(&schedule(), false) };
            samplers::sa_solver(s, &settings, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        ("sa_solver_pece, τ = 0", 4.0, |s, x| {
            let settings = Settings { eta: 0.0, ..Settings::of_schedule(&schedule(), true) };
            samplers::sa_solver(s, &settings, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
        // Two is what ComfyUI's formula has, with whose values this one's are compared above.
        ("dpmpp_3m_sde, η = 0", 2.0, |s, x| {
            samplers::dpmpp_3m_sde(s, 0.0, x, &mut gaussian, &mut Silence, &mut quiet)
        }),
    ];
    let mut wrong = Vec::new();
    for (name, order, method) in methods {
        let (coarse, fine) = (error_of(*method, 160), error_of(*method, 320));
        let measured = (coarse / fine).log2();
        println!("{name}: order {measured:.2}, error {fine:.2e} in 320 steps");
        if measured < order - 0.3 || measured > order + 1.3 {
            wrong.push(format!("{name}: {measured:.2} for {order}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn ipndm_is_lms_on_even_levels() {
    let sigmas: Vec<f64> = (0..=12).map(|i| 5.0 - 0.4 * i as f64).collect();
    let x = Tensor::full(3f64, (1, 1, 1, 1), &Device::Cpu).unwrap();
    let a = samplers::lms(&sigmas, 4, x.clone(), &mut gaussian, &mut quiet).unwrap();
    let b = samplers::ipndm(&sigmas, x, &mut gaussian, &mut quiet).unwrap();
    let distance = (a - b).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()[0];
    assert!(distance.abs() < 1e-12, "{distance}");
}

#[test]
fn dpm_fast_converges_as_its_last_steps_let_it() {
    let method: Method = |s, x| samplers::dpm_fast(s, x, &mut gaussian, &mut quiet);
    // The last step has the first order, the first after a second, or the second alone.
    for (coarse, fine, order) in [(160, 322, 2.0), (162, 324, 2.0), (161, 323, 3.0)] {
        let measured = (error_of(method, coarse) / error_of(method, fine)).log2();
        println!("dpm_fast: order {measured:.2} with {} left", coarse % 3);
        assert!((measured - order).abs() < 0.3, "{measured:.2} for {order}");
    }
}

#[test]
fn dpm_adaptive_is_as_exact_as_it_is_asked_to_be() {
    let (high, low) = (20.0, 0.1);
    let start = MEAN + 1.3 * high;
    let exact = flow(start, high, low);
    let mut last = (0, f64::INFINITY);
    for relative in [0.1, 0.01, 0.001, 0.0001] {
        let tolerance = Tolerance { relative, absolute: relative * 0.1 };
        let x = Tensor::full(start, (1, 1, 1, 1), &Device::Cpu).unwrap();
        let (mut tries, mut asked) = (0, 0);
        let mut model = |x: &Tensor, sigma: f64| {
            asked += 1;
            gaussian(x, sigma)
        };
        let mut told = |step: Step<'_>| {
            tries += 1;
            assert_eq!(step.done, tries);
            assert!(step.steps >= step.done);
            Ok(())
        };
        let levels = [high, 3.0, low, 0.0];
        let settings = Adaptive { tolerance, ..Adaptive::default() };
        let (model, noise) = (&mut model, &mut Silence);
        let end = samplers::dpm_adaptive(&levels, &settings, x, model, noise, &mut told).unwrap();
        let end = end.flatten_all().unwrap().to_vec1::<f64>().unwrap()[0];
        let error = (end - exact).abs();
        println!("{relative}: {tries} tries, error {error:.1e}");
        assert_eq!(asked, 3 * tries);
        assert!(error < 20.0 * relative && error < last.1, "{relative}: {error:e}");
        assert!(tries > last.0, "{tries} tries");
        last = (tries, error);
    }
}

#[test]
fn without_guidance_the_forms_of_cfg_pp_are_the_plain_ones() {
    let (schedule, reference) = (schedule(), reference());
    for name in SAMPLERS.iter().filter(|s| s.is_cfg_pp()).map(|s| s.name) {
        let plain = name.strip_suffix("_cfg_pp").unwrap();
        let run = |name: &str| {
            let x = Tensor::from_vec(reference.x.clone(), (2, 1, 4, 4), &Device::Cpu).unwrap();
            let (levels, noises) = (&reference.schedules["full"], &reference.noises);
            let mut noise = Recorded { noises, drawn: 0 };
            let (model, observe) = (&mut alike, &mut quiet);
            let end =
                samplers::sample_guided(name, &schedule, levels, x, model, &mut noise, observe);
            end.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        for (a, b) in run(name).iter().zip(run(plain)) {
            assert!((a - b).abs() < 1e-10, "{name}: {a} for {b}");
        }
    }
    // And by themselves they cannot be run on half of what they need.
    let x = Tensor::full(2f64, (2, 1, 4, 4), &Device::Cpu).unwrap();
    let error = samplers::sample(
        "euler_cfg_pp",
        &schedule,
        &[1.0, 0.0],
        x,
        &mut gaussian,
        &mut Silence,
        &mut quiet,
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("euler_cfg_pp asks") && error.contains("without guidance"), "{error}");
}

/// Mean and variance of what `sampler` makes of 20,000 values over Karras' levels.
fn moments(sampler: &str, steps: usize) -> (f64, f64) {
    let schedule = schedule();
    let levels = sigmas::by_name("karras", &schedule, steps).unwrap();
    let noise = Tensor::from_vec(Generator::new(5).randn(20_000), (20_000, 1, 1, 1), &Device::Cpu);
    let x = noise.unwrap().affine(DEVIATION.hypot(levels[0]), MEAN).unwrap();
    let kind = samplers::sampler(sampler).unwrap().noise;
    let mut noise = TorchNoise::new(kind, 9, &x, &levels);
    let (model, observe) = (&mut alike, &mut quiet);
    let x = samplers::sample_guided(sampler, &schedule, &levels, x, model, &mut noise, observe);
    let x = x.unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    let x = x.to_vec1::<f64>().unwrap();
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64)
}

#[test]
fn stochastic_samplers_end_in_the_datas_distribution() {
    let names = [
        // Of first order: what is missing in the variance falls with the steps' length.
        ("euler_ancestral", 240),
        ("dpm_2_ancestral", 60),
        ("dpmpp_2s_ancestral", 60),
        ("dpmpp_sde", 60),
        ("dpmpp_2m_sde", 60),
        ("dpmpp_3m_sde", 60),
        ("dpmpp_2m_sde_heun", 60),
        ("res_multistep_ancestral", 60),
        ("er_sde", 60),
        ("seeds_2", 60),
        ("seeds_3", 60),
        ("sa_solver", 60),
        ("sa_solver_pece", 60),
        ("ddpm", 240),
    ];
    const BOUND: f64 = 0.04;
    let mut wrong = Vec::new();
    for (name, steps) in names {
        let (mean, variance) = moments(name, steps);
        let relative = variance / (DEVIATION * DEVIATION) - 1.0;
        println!("{name}: mean {mean:.4}, variance {variance:.4}");
        if (mean - MEAN).abs() > 0.02 || relative.abs() > BOUND {
            wrong.push(format!("{name}: mean {mean}, variance off by {relative}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn lcm_has_the_variance_of_its_recursion() {
    let levels = sigmas::by_name("karras", &schedule(), 6).unwrap();
    let data = DEVIATION * DEVIATION;
    // x₀ shrinks towards the mean by the data's share; then comes the next level's noise.
    let mut expected = data + levels[0] * levels[0];
    for pair in levels.windows(2) {
        expected = expected * (data / (data + pair[0] * pair[0])).powi(2) + pair[1] * pair[1];
    }
    let (mean, variance) = moments("lcm", 6);
    assert!((mean - MEAN).abs() < 0.02, "{mean}");
    assert!((variance / expected - 1.0).abs() < 0.04, "{variance} for {expected}");
}

#[test]
fn short_and_partial_schedules_are_run() {
    let schedule = schedule();
    let x = Tensor::full(2f32, (2, 1, 2, 2), &Device::Cpu).unwrap();
    for name in NAMES {
        for levels in [
            &[][..],
            &[5.0],
            &[5.0, 0.0],
            &[5.0, 2.0, 0.0],
            &[5.0, 2.0],
            &[5.0, 2.0, 1.0, 0.6],
            &[2.0, 1.0, 0.6, 0.3, 0.1, 0.0],
            &[2.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.0],
        ] {
            let mut noise = TorchNoise::new(sampler(name).unwrap().noise, 3, &x, levels);
            let told = Cell::new(0);
            let end = samplers::sample_guided(
                name,
                &schedule,
                levels,
                x.clone(),
                &mut alike,
                &mut noise,
                &mut |step| {
                    told.set(told.get() + 1);
                    assert_eq!(step.done, told.get());
                    assert!(step.done <= step.steps);
                    Ok(())
                },
            );
            let end = end.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(end.iter().all(|x| x.is_finite()), "{name} {levels:?}: {end:?}");
            if levels.len() < 2 {
                assert_eq!(end, [2.0; 8], "{name}");
            }
        }
    }
}

#[test]
fn nan_from_the_model_is_no_panic_and_errors_end_the_sampling() {
    let schedule = schedule();
    let x = Tensor::full(2f32, (1, 1, 4, 4), &Device::Cpu).unwrap();
    let levels = [5.0, 2.0, 1.0, 0.5, 0.3, 0.1, 0.0];
    for name in NAMES {
        let mut noise = TorchNoise::new(sampler(name).unwrap().noise, 3, &x, &levels);
        let mut nan = |x: &Tensor, _: f64| {
            let x0 = (x * f64::NAN)?;
            Ok(Guided { uncond: x0.clone(), x0 })
        };
        let run = |model: &mut samplers::GuidedDenoiser<'_>,
                   noise: &mut TorchNoise,
                   observe: &mut samplers::Observe<'_>| {
            samplers::sample_guided(name, &schedule, &levels, x.clone(), model, noise, observe)
        };
        match (*name, run(&mut nan, &mut noise, &mut quiet)) {
            ("dpm_adaptive", Err(error)) => {
                assert!(error.to_string().contains("numbers that are none"), "{error}");
            }
            ("dpm_adaptive", Ok(_)) => panic!("no step is short enough"),
            (_, sampled) => drop(sampled.unwrap()),
        }
        let mut stop = |step: Step<'_>| match step.done {
            2 => Err(said("cancelled")),
            _ => Ok(()),
        };
        let error = run(&mut alike, &mut noise, &mut stop).unwrap_err();
        let Error::Caller(error) = error else { panic!("{name}: {error}") };
        let error = error.downcast::<std::io::Error>().expect("as it was");
        assert_eq!(error.to_string(), "cancelled", "{name}");
        let mut broken = |_: &Tensor, _: f64| Err(said("no model"));
        let error = run(&mut broken, &mut noise, &mut quiet).unwrap_err();
        assert!(error.to_string().contains("no model"), "{name}: {error}");
    }
}

#[test]
fn what_is_no_schedule_or_no_sampler_is_refused() {
    let schedule = schedule();
    let run = |name: &str, levels: &[f64]| {
        let x = Tensor::full(2f32, (1, 1, 4, 4), &Device::Cpu).unwrap();
        let mut noise = TorchNoise::new(StepNoise::Fresh, 3, &x, levels);
        samplers::sample(name, &schedule, levels, x, &mut gaussian, &mut noise, &mut quiet)
    };
    for levels in [&[1.0, 2.0][..], &[1.0, -1.0], &[f64::NAN, 0.0], &[f64::INFINITY, 1.0]] {
        let error = run("euler", levels).unwrap_err().to_string();
        assert!(error.contains("must fall"), "{error}");
    }
    for name in ["euler_b", "euler_gpu", "dpms", "heun_cfg_pp", ""] {
        let error = run(name, &[1.0, 0.0]).unwrap_err().to_string();
        assert!(error.contains(&format!("\"{name}\"")) && error.contains("uni_pc_bh2"), "{error}");
    }
}

#[test]
fn samplers_draw_the_noise_that_the_sheet_says() {
    struct Counted(usize);
    impl NoiseSampler for Counted {
        fn sample(&mut self, sigma: f64, next: f64) -> Result<Tensor> {
            assert!(sigma > next && next > 0.0, "{sigma} to {next}");
            self.0 += 1;
            Ok(Tensor::zeros((1, 1, 2, 2), DType::F64, &Device::Cpu)?)
        }
    }
    let schedule = schedule();
    let levels = sigmas::by_name("karras", &schedule, 8).unwrap();
    for row in SAMPLERS {
        let x = Tensor::full(2f64, (1, 1, 2, 2), &Device::Cpu).unwrap();
        let mut noise = Counted(0);
        let (model, observe) = (&mut alike, &mut quiet);
        samplers::sample_guided(row.name, &schedule, &levels, x, model, &mut noise, observe)
            .unwrap();
        assert_eq!(noise.0 == 0, row.noise == StepNoise::Nothing, "{}: {}", row.name, noise.0);
    }
}

#[test]
fn the_last_steps_of_a_schedule_end_as_the_whole_does() {
    // diffusers counts the schedule's steps, not those that are taken (img2img's strength): 15 and more end
    // with a step of second order where σ stays above 0.
    let schedule = schedule();
    let timesteps = samplers::dpm_timesteps(&schedule, 20);
    let levels: Vec<_> = timesteps[17..].iter().map(|&t| (t, schedule.sigma_at(t))).collect();
    let run = |scheduled| {
        let x = Tensor::full(1.5f64, (1, 1, 1, 1), &Device::Cpu).unwrap();
        let mut model = |x: &Tensor, t: f64| Ok(((x.sin()? * 0.3)? + 0.1 * t / 1000.0)?);
        let ending = Ending::SigmaMin;
        let end =
            samplers::dpm_solver(&schedule, &levels, scheduled, ending, x, &mut model, &mut quiet);
        end.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()[0]
    };
    assert_eq!(run(20), run(15));
    assert_eq!(run(3), run(14));
    assert!((run(20) - run(3)).abs() > 1e-4, "{} {}", run(20), run(3));
}

#[test]
fn increments_of_the_tree_add_up() {
    let tree = BrownianTree::new(0.03, 14.6, 32, 11);
    let increment = |a: f64, b: f64| -> Vec<f64> {
        let root = f64::from((a as f32 - b as f32).abs()).sqrt();
        tree.between(a, b).into_iter().map(|w| f64::from(w) * root).collect()
    };
    let (whole, first, second) = (increment(9.0, 2.0), increment(9.0, 4.5), increment(4.5, 2.0));
    for i in 0..32 {
        assert!((whole[i] - first[i] - second[i]).abs() < 1e-5);
        assert_eq!(increment(2.0, 9.0)[i], -whole[i]);
    }
}

#[test]
fn settings_have_the_values_of_their_formulas() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sampler_settings.json");
    let expected: BTreeMap<String, Vec<f64>> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let reference = reference();
    let sa = |predictor, corrector| Settings {
        eta: 0.6,
        noisy: (5.0, 0.5),
        predictor,
        corrector,
        evaluate_again: false,
        simple_second: false,
    };
    let adaptive = |relative, absolute| Adaptive {
        tolerance: Tolerance { relative, absolute },
        ..Adaptive::default()
    };
    let pid = Adaptive {
        proportional: 0.2,
        integral: 0.7,
        derivative: 0.1,
        accepted: 0.9,
        ..Adaptive::default()
    };
    let second = Adaptive { third_order: false, first: 0.2, ..adaptive(0.3, 0.0078) };
    let fifth = Settings { eta: 1.0, noisy: (9.0, 0.2), evaluate_again: true, ..sa(5, 6) };
    let er = |noise_scale, stages| Kind::ErSde { noise_scale, stages };
    let half = NoiseScale::Power { eta: 0.5 };
    let heun = Kind::Dpmpp2mSde { eta: 0.4, form: SecondOrder::Heun };
    let midpoint = Kind::Dpmpp2mSde { eta: 0.4, form: SecondOrder::Midpoint };
    let simple = Settings { simple_second: true, ..sa(2, 2) };
    let noisy = Adaptive { eta: 0.5, ..adaptive(0.3, 0.2) };
    let cases = [
        ("euler_ancestral", Kind::EulerAncestral { eta: 0.5 }, 0.8),
        ("dpmpp_2s_ancestral", Kind::Dpmpp2sAncestral { eta: 0.5 }, 1.2),
        ("dpmpp_sde", Kind::DpmppSde { eta: 0.7, r: 0.3 }, 1.1),
        ("dpmpp_2m_sde", midpoint, 0.9),
        ("dpmpp_2m_sde_heun", heun, 0.9),
        ("dpmpp_3m_sde", Kind::Dpmpp3mSde { eta: 0.6 }, 1.1),
        ("lms 2", Kind::Lms { order: 2 }, 1.0),
        ("lms 6", Kind::Lms { order: 6 }, 1.0),
        ("dpm_adaptive 2", Kind::DpmAdaptive(second), 1.0),
        ("dpm_adaptive pid", Kind::DpmAdaptive(pid), 1.0),
        ("dpm_adaptive noise", Kind::DpmAdaptive(noisy), 0.9),
        ("er_sde 1", er(NoiseScale::Fast, 1), 0.9),
        ("er_sde 2", er(half, 2), 1.1),
        ("er_sde ode", er(NoiseScale::Power { eta: 0.0 }, 3), 0.0),
        ("sa_solver", Kind::SaSolver(sa(2, 3)), 0.9),
        ("sa_solver simple", Kind::SaSolver(simple), 1.0),
        ("sa_solver 5", Kind::SaSolver(fifth), 1.0),
        ("sa_solver alone", Kind::SaSolver(sa(3, 0)), 1.0),
        ("euler_pp", Kind::EulerPp, 1.0),
    ];
    assert_eq!(cases.len(), expected.len());
    let mut wrong = Vec::new();
    for (name, kind, s_noise) in cases {
        let full = &reference.schedules["full"];
        let levels = match name {
            "lms 2" => &reference.schedules["leftover"][..],
            // The step to 0 is by x₀ here.
            "lms 6" => &full[..full.len() - 1],
            _ => full,
        };
        let x = Tensor::from_vec(reference.x.clone(), (2, 1, 4, 4), &Device::Cpu).unwrap();
        let mut noise = Recorded { noises: &reference.noises, drawn: 0 };
        let mut model = |x: &Tensor, sigma: f64| {
            let (bounded, linear) = ((x / (1.0 + sigma))?.tanh()?, 1.0 / (1.0 + sigma * sigma));
            let x0 = ((&bounded * 0.8)? + (x * (0.3 * linear))?)?;
            let uncond = ((bounded * 0.5)? + x.affine(0.2 * linear, 0.1)?)?;
            Ok(Guided { x0, uncond })
        };
        let method = samplers::Method::new(kind, s_noise);
        let (schedule, observe) = (schedule(), &mut |_: Step<'_>| Ok(()));
        let (model, noise) = (&mut model, &mut noise);
        let found = samplers::sample_by(&method, &schedule, levels, x, model, noise, observe);
        let found = found.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let size = expected[name].iter().fold(0f64, |size, x| size.max(x.abs()));
        let errors = found.iter().zip(&expected[name]).map(|(a, b)| (a - b).abs());
        let error = errors.fold(0.0, f64::max) / size;
        if error > 1e-6 {
            wrong.push(format!("{name}: {error:e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn an_ode_is_gone_back_along_rising_levels() {
    let schedule = schedule();
    let start = Tensor::full(MEAN + 0.3, (1, 1, 1, 1), &Device::Cpu).unwrap();
    let levels: Vec<f64> = (0..=400).map(|i| 0.05 * 200f64.powf(f64::from(i) / 400.0)).collect();
    let mut model = |x: &Tensor, sigma: f64| {
        let x0 = gaussian(x, sigma)?;
        Ok(Guided { uncond: x0.clone(), x0 })
    };
    for name in ["heun", "dpmpp_2m", "lms"] {
        let method = samplers::Method::named(name).unwrap();
        let (x, observe) = (start.clone(), &mut |_: Step<'_>| Ok(()));
        let (noise, model) = (&mut Silence, &mut model);
        let end = samplers::sample_by(&method, &schedule, &levels, x, model, noise, observe);
        let end = end.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()[0];
        let exact = flow(MEAN + 0.3, 0.05, 10.0);
        assert!((end - exact).abs() < 1e-3 * exact.abs(), "{name}: {end} for {exact}");
    }
    let ancestral = samplers::Method::named("euler_ancestral").unwrap();
    let (noise, observe) = (&mut Silence, &mut |_: Step<'_>| Ok(()));
    let refused =
        samplers::sample_by(&ancestral, &schedule, &levels, start, &mut model, noise, observe);
    assert!(matches!(refused, Err(Error::Levels(_))));
}

/// scipy.stats.beta.ppf(1 - k/8, α, β), times 999, rounded.
const BETA_2_5: [usize; 8] = [999, 484, 389, 321, 264, 212, 161, 105];
const BETA_03_4: [usize; 8] = [999, 183, 89, 44, 20, 7, 2, 0];
const BETA_125_07: [usize; 8] = [999, 995, 989, 979, 967, 949, 924, 881];
const BETA_50_49: [usize; 8] = [999, 562, 538, 521, 505, 489, 471, 447];

#[test]
fn beta_quantiles_are_scipys() {
    let schedule = schedule();
    for (alpha, beta, timesteps) in [
        (2.0, 5.0, BETA_2_5),
        (0.3, 4.0, BETA_03_4),
        (12.5, 0.7, BETA_125_07),
        (50.0, 49.0, BETA_50_49),
    ] {
        let found = sigmas::at_beta_quantiles(&schedule, 8, alpha, beta);
        let mut timesteps = timesteps.to_vec();
        timesteps.dedup();
        let expected: Vec<f64> = timesteps.iter().map(|&t| schedule.sigma_at(t)).collect();
        assert_eq!(found, expected, "{alpha} {beta}");
    }
}
