//! Sampling by parts: what KSampler does in one, and what its parts may be instead.

use kosmograph_models::samplers::NAMES;
use node::interface::{self, GuideCall, SampleCall, marker};
use node::*;

use super::host::{one, run, samples, tensor, values};
use super::models::{alphas_cumprod, believer, believer_of, gaussian};
use super::{close, empty, says};

fn text(text: &str) -> Value {
    Value::string(text)
}

fn select(name: &str) -> Value {
    one("KSamplerSelect", &[("sampler_name", text(name))])
}

fn noise(seed: i64) -> Value {
    one("RandomNoise", &[("noise_seed", seed.into())])
}

fn levels(scheduler: &str, steps: i64) -> Value {
    let inputs = [("model", gaussian()), ("scheduler", text(scheduler)), ("steps", steps.into())];
    one("BasicScheduler", &inputs)
}

fn cfg_guider(model: Value, cfg: f64) -> Value {
    let sides = [("positive", says(0.7)), ("negative", says(-0.2))];
    one("CFGGuider", &[("model", model), ("cfg", cfg.into()), sides[0].clone(), sides[1].clone()])
}

/// Both outputs of SamplerCustomAdvanced.
fn advanced(parts: [Value; 5]) -> Result<[Value; 2], String> {
    let names = ["noise", "guider", "sampler", "sigmas", "latent_image"];
    let inputs: Vec<_> = names.into_iter().zip(parts).collect();
    run("SamplerCustomAdvanced", &inputs).map(|both| both.try_into().unwrap())
}

fn bits(latent: &Value) -> Vec<u32> {
    samples(latent).into_iter().map(f32::to_bits).collect()
}

/// Of a timestep of Stable Diffusion's training.
fn sigma(timestep: usize) -> f32 {
    let alpha = alphas_cumprod()[timestep];
    ((1.0 - alpha) / alpha).sqrt() as f32
}

/// A latent with something in it, a mask, and places in a batch.
fn inhabited() -> Value {
    let values: Vec<f32> = (0..128).map(|i| (i as f32 * 0.37).sin()).collect();
    let mask = tensor(&[1, 4, 4], (0..16).map(|i| f32::from(i % 4 < 2)).collect());
    let places = Value::list(vec![3i64.into(), 1i64.into()]);
    Value::map([
        ("samples", tensor(&[2, 4, 4, 4], values)),
        ("noise_mask", mask),
        ("batch_index", places),
    ])
}

#[test]
fn parts_give_what_ksampler_gives_to_the_bit() {
    for name in NAMES {
        for (latent, cfg) in [(empty(1, 4, 4), 2.0), (inhabited(), 1.0)] {
            let ksampler = [
                ("model", gaussian()),
                ("positive", says(0.7)),
                ("negative", says(-0.2)),
                ("latent_image", latent.clone()),
                ("seed", 7i64.into()),
                ("steps", 5i64.into()),
                ("cfg", cfg.into()),
                ("sampler_name", text(name)),
                ("scheduler", text("sgm_uniform")),
            ];
            // KSampler leaves a level out for these, which a scheduler's node does not.
            if ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"].contains(name) {
                continue;
            }
            let whole = bits(&one("KSampler", &ksampler));
            let sigmas = levels("sgm_uniform", 5);
            let parts = [
                noise(7),
                cfg_guider(gaussian(), cfg),
                select(name),
                sigmas.clone(),
                latent.clone(),
            ];
            let [output, _] = advanced(parts).unwrap();
            assert!(bits(&output) == whole, "{name}, guidance {cfg}");
            let custom = [
                ("model", gaussian()),
                ("noise_seed", 7i64.into()),
                ("cfg", cfg.into()),
                ("positive", says(0.7)),
                ("negative", says(-0.2)),
                ("sampler", select(name)),
                ("sigmas", sigmas),
                ("latent_image", latent),
            ];
            assert!(bits(&one("SamplerCustom", &custom)) == whole, "{name}, guidance {cfg}");
        }
    }
}

#[test]
fn samplers_with_their_defaults_are_those_of_the_names() {
    let of = |sampler: Value| {
        let parts =
            [noise(3), cfg_guider(gaussian(), 2.0), sampler, levels("karras", 5), empty(1, 4, 4)];
        bits(&advanced(parts).unwrap()[0])
    };
    let model = ("model", gaussian());
    for (class, inputs, name) in [
        ("SamplerEulerAncestral", vec![], "euler_ancestral"),
        ("SamplerEulerAncestralCFGPP", vec![], "euler_ancestral_cfg_pp"),
        ("SamplerEulerCFGpp", vec![], "euler_cfg_pp"),
        ("SamplerLMS", vec![], "lms"),
        ("SamplerDPMPP_2S_Ancestral", vec![], "dpmpp_2s_ancestral"),
        ("SamplerDPMPP_SDE", vec![], "dpmpp_sde"),
        ("SamplerDPMPP_2M_SDE", vec![], "dpmpp_2m_sde"),
        ("SamplerDPMPP_2M_SDE", vec![("solver_type", text("heun"))], "dpmpp_2m_sde_heun"),
        ("SamplerDPMPP_3M_SDE", vec![("noise_device", text("cpu"))], "dpmpp_3m_sde"),
        ("SamplerDPMAdaptative", vec![], "dpm_adaptive"),
        ("SamplerER_SDE", vec![], "er_sde"),
        ("SamplerSASolver", vec![model.clone()], "sa_solver"),
        ("SamplerSASolver", vec![model, ("use_pece", true.into())], "sa_solver_pece"),
        ("SamplerEulerAncestral", vec![("s_noise", 0.5.into())], ""),
    ] {
        let (with_settings, by_name) = (of(one(class, &inputs)), name.is_empty());
        match by_name {
            false => assert!(with_settings == of(select(name)), "{class}"),
            true => assert!(with_settings != of(select("euler_ancestral")), "{class} {inputs:?}"),
        }
    }
    // Without its noise the ancestral one is Euler's.
    let quiet = of(one("SamplerEulerAncestral", &[("eta", 0.0.into())]));
    assert!(quiet == of(select("euler")));
}

#[test]
fn guiders_put_their_conditions_together() {
    let end = |guider: Value| {
        let parts = [noise(1), guider, select("euler"), levels("normal", 4), empty(1, 4, 4)];
        samples(&advanced(parts).unwrap()[0])
    };
    let near = |found: &[f32], wanted: f32| close(found, &vec![wanted; found.len()], 1e-4);
    near(&end(one("BasicGuider", &[("model", believer()), ("conditioning", says(0.7))])), 0.7);
    near(&end(cfg_guider(believer(), 3.0)), -0.2 + 3.0 * 0.9);
    let dual = |first: f64, second: f64, style: &str, model: Value| {
        let inputs = [
            ("model", model),
            ("cond1", says(0.7)),
            ("cond2", says(0.4)),
            ("negative", says(-0.2)),
            ("cfg_conds", first.into()),
            ("cfg_cond2_negative", second.into()),
            ("style", text(style)),
        ];
        one("DualCFGGuider", &inputs)
    };
    near(&end(dual(2.0, 3.0, "regular", believer())), -0.2 + 3.0 * 0.6 + 2.0 * 0.3);
    near(&end(dual(2.0, 3.0, "nested", believer())), -0.2 + 3.0 * (0.4 + 2.0 * 0.3 + 0.2));
    // What counts with nothing is not asked for.
    for (first, second, rows) in [(2.0, 3.0, 3), (2.0, 1.0, 2), (1.0, 1.0, 1)] {
        let (model, calls) = believer_of("epsilon", 4);
        near(
            &end(dual(first, second, "regular", model)),
            -0.2 + second as f32 * 0.6 + first as f32 * 0.3,
        );
        let asked: usize = calls.lock().unwrap().iter().map(|(shape, _)| shape[0]).sum();
        assert_eq!(asked, 4 * rows);
    }
    let perpendicular = [
        ("model", believer()),
        ("positive", says(0.7)),
        ("negative", says(-0.2)),
        ("empty_conditioning", says(0.1)),
        ("cfg", 2.0.into()),
        ("neg_scale", 5.0.into()),
    ];
    // The negative is the positive's opposite: nothing of it lies beside.
    near(&end(one("PerpNegGuider", &perpendicular)), 0.1 + 2.0 * 0.6);
}

#[test]
fn the_denoised_output_is_what_the_model_said_last() {
    // The believer answers for whole timesteps.
    let [high, middle, low] = [900, 700, 500].map(sigma);
    let sigmas = tensor(&[3], vec![high, middle, low]);
    let parts = [noise(5), cfg_guider(believer(), 1.0), select("euler"), sigmas, empty(1, 4, 4)];
    let [output, denoised] = advanced(parts).unwrap();
    close(&samples(&denoised), &[0.7; 64], 1e-4);
    // Euler keeps x₀ here, and of what was added to it the share that the level has left.
    let unit = samples(&one(
        "AddNoise",
        &[
            ("model", believer()),
            ("noise", noise(5)),
            ("sigmas", tensor(&[1], vec![1.0])),
            ("latent_image", empty(1, 4, 4)),
        ],
    ));
    let left = low / high;
    let expected: Vec<f32> = unit.iter().map(|noise| 0.7 + (high * noise - 0.7) * left).collect();
    close(&samples(&output), &expected, 1e-3);
}

#[test]
fn levels_that_make_no_step() {
    let latent = inhabited();
    let of = |sigmas: Vec<f32>| {
        let sigmas = tensor(&[sigmas.len()], sigmas);
        let parts =
            [noise(5), cfg_guider(believer(), 1.0), select("euler"), sigmas, empty(1, 2, 2)];
        samples(&advanced(parts).unwrap()[0])
    };
    assert_eq!(of(vec![]), [0.0; 16]);
    let (one_level, doubled) = (of(vec![1.0]), of(vec![2.0]));
    assert!(one_level.iter().zip(&doubled).all(|(a, b)| (2.0 * a - b).abs() < 1e-6 && *a != 0.0));
    let none = [
        noise(5),
        cfg_guider(believer(), 1.0),
        select("euler"),
        tensor(&[0], vec![]),
        latent.clone(),
    ];
    assert_eq!(bits(&advanced(none).unwrap()[0]), bits(&latent));
}

#[test]
fn noise_is_added_as_to_a_step() {
    let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let latent = Value::map([("samples", tensor(&[1, 4, 2, 2], values.clone()))]);
    let add = |noise: Value, sigmas: Vec<f32>| {
        let sigmas = ("sigmas", tensor(&[sigmas.len()], sigmas));
        let latent = ("latent_image", latent.clone());
        samples(&one("AddNoise", &[("model", believer()), ("noise", noise), sigmas, latent]))
    };
    // torch.randn(16) of seed 0.
    let torch = [
        -1.1258398,
        -1.1523602,
        -0.25057858,
        -0.4338788,
        0.84871036,
        0.69200915,
        -0.31601277,
        -2.1152194,
    ];
    let expected: Vec<f32> = torch.iter().zip(&values).map(|(noise, x)| x + 3.0 * noise).collect();
    close(&add(noise(0), vec![4.0, 2.0, 1.0])[..8], &expected, 1e-5);
    close(&add(noise(0), vec![3.0])[..8], &expected, 1e-5);
    assert_eq!(add(noise(0), vec![]), values);
    assert_eq!(add(one("DisableNoise", &[]), vec![3.0]), values);
}

/// Somebody else's guider: believes in 0.25 whatever it is asked, and without guidance in 0.5.
struct Certain;

impl Export for Certain {
    const TYPE: &'static str = "GUIDER";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Certain: marker::Guider, marker::Describe];
}

impl interface::Guide for Certain {
    fn guide(&self, _cx: &Context, call: &GuideCall) -> node::Result<(Tensor, Option<Tensor>)> {
        let shape = call.x.shape();
        let full = |value| Tensor::from_f32(&shape, vec![value; shape.iter().product()]);
        let uncond = call.wants_unconditional.then(|| full(0.5)).transpose()?;
        Ok((full(0.25)?, uncond))
    }
}

impl interface::Describe for Certain {
    fn describe(&self) -> serde_json::Value {
        json!({
            "prediction": "epsilon", "in_channels": 4, "out_channels": 4, "context_width": 2,
            "train_steps": 1000, "alphas_cumprod": alphas_cumprod(),
        })
    }
}

/// Somebody else's sampler: asks once, at the first level, and takes what it is told.
struct Once;

impl Export for Once {
    const TYPE: &'static str = "SAMPLER";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Once: marker::Sampler];
}

impl interface::SampleLatents for Once {
    fn sample(&self, cx: &Context, call: &SampleCall) -> node::Result<(Tensor, Tensor)> {
        let (noise, seed) = call.noise.make_noise(cx, call.latents.clone(), None)?;
        assert_eq!(seed, u64::MAX - 3);
        let ask = GuideCall {
            x: noise,
            sigma: f64::from(call.sigmas.to_f32()?[0]),
            latents: None,
            noise_mask: None,
            wants_unconditional: true,
        };
        let (x0, uncond) = call.guider.guide(cx, ask)?;
        Ok((x0, uncond.unwrap()))
    }
}

/// Somebody else's noise: ones.
struct Ones;

impl Export for Ones {
    const TYPE: &'static str = "NOISE";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Ones: marker::Noise];
}

impl interface::MakeNoise for Ones {
    fn noise(
        &self,
        _cx: &Context,
        latents: &Tensor,
        _batch_index: Option<&[i64]>,
    ) -> node::Result<Tensor> {
        let shape = latents.shape();
        Tensor::from_f32(&shape, vec![1.0; shape.iter().product()])
    }

    fn seed(&self) -> u64 {
        u64::MAX - 3
    }
}

#[test]
fn each_part_may_be_somebody_elses() {
    let object = |value: Object| value.into_value();
    for name in ["euler", "dpmpp_2m_sde", "euler_cfg_pp", "ddim"] {
        let parts = [
            object(Object::new(Ones)),
            object(Object::new(Certain)),
            select(name),
            tensor(&[3], vec![2.0, 1.0, 0.0]),
            empty(2, 4, 4),
        ];
        close(&samples(&advanced(parts).unwrap()[0]), &[0.25; 128], 1e-6);
    }
    // The noise is what was given: two thirds of it are gone by the last level.
    let parts = [
        object(Object::new(Ones)),
        object(Object::new(Certain)),
        select("euler"),
        tensor(&[2], vec![3.0, 1.0]),
        empty(1, 2, 2),
    ];
    close(&samples(&advanced(parts).unwrap()[0]), &[0.25 + (3.0 - 0.25) / 3.0; 16], 1e-6);
    let parts = [
        object(Object::new(Ones)),
        cfg_guider(believer(), 2.0),
        object(Object::new(Once)),
        tensor(&[2], vec![sigma(500), 0.0]),
        empty(1, 2, 2),
    ];
    let [x0, uncond] = advanced(parts).unwrap();
    close(&samples(&x0), &[-0.2 + 2.0 * 0.9; 16], 1e-3);
    close(&samples(&uncond), &[-0.2; 16], 1e-3);
}

#[test]
fn an_inpainting_model_is_given_what_the_sampling_began_with() {
    let (model, _) = believer_of("epsilon", 9);
    let latent = inhabited();
    let ksampler = [
        ("model", model.clone()),
        ("positive", says(0.7)),
        ("negative", says(-0.2)),
        ("latent_image", latent.clone()),
        ("seed", 7i64.into()),
        ("steps", 4i64.into()),
        ("cfg", 2.0.into()),
    ];
    let whole = bits(&one("KSampler", &ksampler));
    let parts = [noise(7), cfg_guider(model, 2.0), select("euler"), levels("normal", 4), latent];
    assert!(bits(&advanced(parts).unwrap()[0]) == whole);
}

#[test]
fn what_cannot_be_is_a_sentence() {
    let refused = |class: &str, inputs: &[(&str, Value)]| run(class, inputs).err().unwrap();
    let error = refused("SamplerDPMAdaptative", &[("h_init", 0.0.into())]);
    assert!(error.starts_with("h_init: "), "{error}");
    let error = refused("SamplerDPMAdaptative", &[("accept_safety", 3.0.into())]);
    assert!(error.starts_with("accept_safety: "), "{error}");
    let error = refused("SamplerDPMPP_SDE", &[("r", 0.0.into())]);
    assert!(error.starts_with("r: "), "{error}");
    let beta = [("model", believer()), ("alpha", 0.0.into())];
    assert!(refused("BetaSamplingScheduler", &beta).starts_with("alpha: "));
    let rising = [
        noise(1),
        cfg_guider(believer(), 1.0),
        select("euler_ancestral"),
        tensor(&[2], vec![1.0, 2.0]),
        empty(1, 2, 2),
    ];
    let error = advanced(rising).unwrap_err();
    assert!(error.contains("must fall"), "{error}");
    let channels = Value::map([("samples", tensor(&[1, 16, 2, 2], vec![1.0; 64]))]);
    let other =
        [noise(1), cfg_guider(believer(), 1.0), select("euler"), levels("normal", 2), channels];
    let error = advanced(other).unwrap_err();
    assert!(error.starts_with("latent_image: ") && error.contains("16 channels"), "{error}");
    let wide = Value::list(vec![Value::map([("context", tensor(&[1, 3, 5], vec![0.1; 15]))])]);
    let guider = one("BasicGuider", &[("model", believer()), ("conditioning", wide)]);
    let parts = [noise(1), guider, select("euler"), levels("normal", 2), empty(1, 2, 2)];
    let error = advanced(parts).unwrap_err();
    assert!(error.contains("5 numbers wide"), "{error}");
}

#[test]
fn beta_levels() {
    // scipy.stats.beta.ppf(1 - k/4, 2, 5), times 999, rounded: 999, 389, 264, 161.
    let inputs = [
        ("model", gaussian()),
        ("steps", 4i64.into()),
        ("alpha", 2.0.into()),
        ("beta", 5.0.into()),
    ];
    let found = values(&one("BetaSamplingScheduler", &inputs));
    close(&found, &[sigma(999), sigma(389), sigma(264), sigma(161), 0.0], 1e-4);
}
