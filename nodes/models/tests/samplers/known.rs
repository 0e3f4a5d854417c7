//! Problems whose solution is known.

use super::*;

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
