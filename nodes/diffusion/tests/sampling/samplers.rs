//! The samplers by their names, as the nodes offer them.

use kosmograph_models::samplers::{NAMES, sampler};
use node::Value;

use crate::host::{run, run_told, samples, tensor};
use crate::models::{believer_of, gaussian};
use crate::{close, empty, sample, says};

fn inputs(model: Value, cfg: f64, sampler: (&'static str, &str)) -> Vec<(&'static str, Value)> {
    let latent = if sampler.0 == "sampler" { "latent" } else { "latent_image" };
    vec![
        ("model", model),
        ("positive", says(0.7)),
        ("negative", says(-0.2)),
        (latent, empty(1, 4, 4)),
        ("seed", Value::from(7i64)),
        ("steps", Value::from(6i64)),
        ("cfg", cfg.into()),
        (sampler.0, Value::string(sampler.1)),
    ]
}

#[test]
fn every_sampler_comes_to_what_the_model_believes() {
    // -0.2 + 2 · (0.7 + 0.2).
    let (expected, mut wrong) = (1.6, Vec::new());
    for name in NAMES {
        let (model, _) = believer_of("epsilon", 4);
        let given = inputs(model, 2.0, ("sampler_name", name));
        let latent = run("KSampler", &given).unwrap_or_else(|error| panic!("{name}: {error}"));
        let farthest = samples(&latent[0]).iter().map(|x| (x - expected).abs()).fold(0.0, f32::max);
        let bound = match *name {
            // These two end at the last level above 0, with its noise.
            "dpm_fast" | "dpm_adaptive" => 0.2,
            // Asked last between two timesteps, where the believer answers for one of them.
            name if sampler(name).unwrap().discards_penultimate_sigma() => 5e-3,
            _ => 1e-4,
        };
        if farthest > bound {
            wrong.push(format!("{name}: {farthest}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_sampler_of_the_gpu_is_that_of_the_cpu_and_says_so_once() {
    let names: Vec<&&str> = NAMES.iter().filter(|name| name.ends_with("_gpu")).collect();
    assert_eq!(names.len(), 4);
    for name in names {
        let cpu = name.strip_suffix("_gpu").unwrap();
        let (of_gpu, told) = run_told("KSampler", &inputs(gaussian(), 2.0, ("sampler_name", name)));
        let (of_cpu, quiet) = run_told("KSampler", &inputs(gaussian(), 2.0, ("sampler_name", cpu)));
        assert_eq!(samples(&of_gpu.unwrap()[0]), samples(&of_cpu.unwrap()[0]));
        assert_eq!((told.len(), quiet.len()), (1, 0), "{told:?} {quiet:?}");
        assert!(told[0].contains(name) && told[0].contains("CPU"), "{told:?}");
    }
}

#[test]
fn cfg_pp_asks_both_halves_and_goes_the_unguided_way() {
    let rows = |name: &str, cfg: f64| {
        let (model, calls) = believer_of("epsilon", 4);
        run("KSampler", &inputs(model, cfg, ("sampler_name", name))).unwrap();
        let rows: Vec<usize> = calls.lock().unwrap().iter().map(|(shape, _)| shape[0]).collect();
        rows
    };
    // Without guidance, too: the half that is weighed with nothing says the way.
    assert_eq!(rows("euler", 1.0), [1; 6]);
    assert_eq!(rows("euler", 2.0), [2; 6]);
    assert_eq!(rows("euler_cfg_pp", 1.0), [2; 6]);
    assert_eq!(rows("euler_cfg_pp", 2.0), [2; 6]);
    let end = |name: &str, cfg: f64| {
        samples(&run("KSampler", &inputs(gaussian(), cfg, ("sampler_name", name))).unwrap()[0])
    };
    // The same for a positive that says what the negative says, else another picture, at any guidance.
    let mut alike = inputs(gaussian(), 3.0, ("sampler_name", "euler"));
    alike.retain(|(name, _)| *name != "negative");
    alike.push(("negative", says(0.7)));
    let plain = samples(&run("KSampler", &alike).unwrap()[0]);
    alike.retain(|(name, _)| *name != "sampler_name");
    alike.push(("sampler_name", Value::string("euler_cfg_pp")));
    close(&samples(&run("KSampler", &alike).unwrap()[0]), &plain, 1e-5);
    for cfg in [1.0, 3.0] {
        let (plain, other) = (end("euler", cfg), end("euler_cfg_pp", cfg));
        let distance = plain.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance > 0.01, "at {cfg}: {distance}");
    }
}

#[test]
fn outside_a_mask_every_sampler_keeps_the_latents() {
    let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    let mask = tensor(&[1, 4, 4], (0..16).map(|i| f32::from(i % 4 < 2)).collect());
    let latent =
        Value::map([("samples", tensor(&[1, 4, 4, 4], values.clone())), ("noise_mask", mask)]);
    for name in NAMES {
        let more = [("sampler_name", Value::string(*name)), ("denoise", Value::from(0.8))];
        let after = samples(&sample(gaussian(), says(0.5), says(0.0), latent.clone(), &more));
        for (i, (before, after)) in values.iter().zip(&after).enumerate() {
            assert_eq!(before.to_bits() == after.to_bits(), i % 4 >= 2, "{name}, value {i}");
        }
    }
}

#[test]
fn an_unknown_sampler_is_an_error_and_no_other_sampler() {
    for (class, input) in [("KSampler", "sampler_name"), ("UNetSample", "sampler")] {
        for name in ["dpms2", "eulr", "euler_gpu", ""] {
            let error = run(class, &inputs(gaussian(), 2.0, (input, name))).unwrap_err();
            assert!(error.contains(&format!("\"{name}\"")), "{class}: {error}");
        }
    }
}
