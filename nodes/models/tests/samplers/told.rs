//! What callers rely on: schedules of any length, errors, noise as the sheet says.

use super::*;

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
