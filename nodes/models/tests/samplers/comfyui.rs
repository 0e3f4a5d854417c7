//! The numbers of ComfyUI's code, of torchsde and of scipy.

use super::*;

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
