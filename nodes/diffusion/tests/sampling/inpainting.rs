//! Masks of the sampler, and U-Nets that take a picture.

use node::Value;

use crate::host::{one, run, samples, tensor, values};
use crate::models::{believer, believer_of, gaussian, reds};
use crate::{close, empty, sample, says};

/// 1 in the left half of 4 × 4.
fn left() -> Value {
    tensor(&[1, 4, 4], (0..16).map(|i| if i % 4 < 2 { 1.0 } else { 0.0 }).collect())
}

fn picture() -> Value {
    let values = (0..64).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    Value::map([("samples", tensor(&[1, 4, 4, 4], values))])
}

fn masked(latent: Value) -> Value {
    one("SetLatentNoiseMask", &[("samples", latent), ("mask", left())])
}

#[test]
fn what_lies_outside_stays_to_the_last_bit() {
    let before = samples(&picture());
    for sampler in ["euler", "euler_ancestral", "dpmpp_2m", "ddim"] {
        let more = [("sampler_name", Value::string(sampler)), ("denoise", Value::from(0.8))];
        let latent = sample(gaussian(), says(0.5), says(0.0), masked(picture()), &more);
        let after = samples(&latent);
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before.to_bits() == after.to_bits(), i % 4 >= 2, "{sampler}, value {i}");
        }
    }
    for sampler in ["dpms", "dpms_zero", "pndm", "ddim"] {
        let inputs = [
            ("model", gaussian()),
            ("positive", says(0.5)),
            ("negative", says(0.0)),
            ("latent", masked(picture())),
            ("steps", Value::from(5i64)),
            ("sampler", Value::string(sampler)),
        ];
        let after = samples(&one("UNetSample", &inputs));
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before.to_bits() == after.to_bits(), i % 4 >= 2, "{sampler}, value {i}");
        }
    }
}

#[test]
fn masks_serve_more_latents_in_turn() {
    // One that covers everything and one that covers nothing, for three pictures.
    let masks = tensor(&[2, 1, 1], vec![1.0, 0.0]);
    let latent = empty(3, 4, 4).with("noise_mask", masks.clone());
    let firsts =
        |latent: &Value| samples(latent).chunks(64).map(|item| item[0]).collect::<Vec<f32>>();
    let after = sample(believer(), says(2.0), says(0.0), latent, &[]);
    close(&firsts(&after), &[2.0, 0.0, 2.0], 1e-4);
    // Where a conditioning counts: without one x₀ is 0.
    let entry = says(2.0).as_list().unwrap().remove(0).with("mask", masks);
    let masked = Value::list(vec![entry]);
    let after = sample(believer(), masked, says(0.0), empty(3, 4, 4), &[]);
    close(&firsts(&after), &[2.0, 0.0, 2.0], 1e-4);
    // And a conditioning of two rows for three pictures, or for one.
    let rows = tensor(&[2, 1, 2], vec![1.0, 0.5, 3.0, 0.5]);
    let rows = Value::list(vec![Value::map([("context", rows)])]);
    let after = sample(believer(), rows.clone(), says(0.0), empty(3, 4, 4), &[]);
    close(&firsts(&after), &[1.0, 3.0, 1.0], 1e-4);
    let after = sample(believer(), rows, says(0.0), empty(1, 4, 4), &[]);
    close(&firsts(&after), &[1.0], 1e-4);
}

#[test]
fn half_a_mask_mixes_in_the_latents() {
    let half = tensor(&[1, 1, 1], vec![0.25]);
    let latent = one("SetLatentNoiseMask", &[("samples", picture()), ("mask", half)]);
    // The last step gives x₀ · 0.25 + latents · 0.75.
    let after = samples(&sample(believer(), says(2.0), says(0.0), latent, &[]));
    let expected: Vec<f32> = samples(&picture()).iter().map(|x| 0.5 + 0.75 * x).collect();
    close(&after, &expected, 1e-5);
}

#[test]
fn an_inpainting_network_sees_the_mask_and_the_picture() {
    let (model, calls) = believer_of("epsilon", 9);
    let after = samples(&sample(model, says(1.0), says(0.0), masked(picture()), &[]));
    assert!(calls.lock().unwrap().iter().all(|(shape, _)| *shape == [1, 9, 4, 4]));
    // The mask's mean is 1/2 of one plane of five; the latents make up the other four.
    let mean = (8.0 + samples(&picture()).iter().sum::<f32>()) / 80.0;
    close(&[after[0]], &[1.0 + mean], 1e-4);
    // Without a mask everything is new, and nothing of the picture known.
    let after = samples(&sample(believer_of("epsilon", 9).0, says(1.0), says(0.0), picture(), &[]));
    let mean = (1.0 + 0.8223 - 0.6876 + 0.6364 + 0.1380) / 5.0;
    close(&[after[0]], &[1.0 + mean], 1e-4);
}

/// 18 × 17 pixels of one red, masked in a square.
fn photograph() -> (Value, Value) {
    let pixels = [0.9f32, 0.2, 0.1].repeat(18 * 17);
    let mask = (0..18 * 17).map(|i| f32::from((4..12).contains(&(i / 17)) && i % 17 < 8));
    (tensor(&[1, 18, 17, 3], pixels), tensor(&[1, 18, 17], mask.collect()))
}

#[test]
fn a_picture_is_encoded_grey_where_it_is_masked() {
    let (pixels, mask) = photograph();
    for (grow, count) in [(0i64, 64), (1, 64), (6, 8 * 8 + 5 * 8 + 3 * 8 + 5 * 3)] {
        let inputs = [
            ("pixels", pixels.clone()),
            ("vae", reds()),
            ("mask", mask.clone()),
            ("grow_mask_by", grow.into()),
        ];
        let latent = one("VAEEncodeForInpaint", &inputs);
        // Rows 1 to 16 and columns 0 to 15 are kept: the mask lies in rows 3 to 10 of them.
        close(&samples(&latent)[..4], &[0.45, 0.45, 0.25, 0.45], 1e-6);
        let mask = values(&latent.get("noise_mask").unwrap());
        assert_eq!(mask.len(), 256);
        let covered = mask.iter().filter(|value| **value == 1.0).count();
        assert_eq!(covered, count, "grown by {grow}");
        assert!(mask.iter().all(|value| [0.0, 1.0].contains(value)));
    }
}

#[test]
fn a_mask_grows_as_torchs_convolution_lets_it() {
    // One pixel in the middle of 16 × 16, by 6: conv2d with padding 3 covers rows and columns 6 … 11.
    let mut mask = vec![0.0; 256];
    mask[8 * 16 + 8] = 1.0;
    let inputs = [
        ("pixels", tensor(&[1, 16, 16, 3], vec![0.5; 768])),
        ("vae", reds()),
        ("mask", tensor(&[1, 16, 16], mask)),
    ];
    let grown = values(&one("VAEEncodeForInpaint", &inputs).get("noise_mask").unwrap());
    for (i, value) in grown.iter().enumerate() {
        let inside = (6..12).contains(&(i / 16)) && (6..12).contains(&(i % 16));
        assert_eq!(*value == 1.0, inside, "row {}, column {}", i / 16, i % 16);
    }
}

#[test]
fn conditionings_bring_the_picture_along() {
    let (pixels, mask) = photograph();
    let inputs = [
        ("positive", says(1.0)),
        ("negative", says(0.0)),
        ("vae", reds()),
        ("pixels", pixels.clone()),
        ("mask", mask),
    ];
    let made = run("InpaintModelConditioning", &inputs).unwrap();
    assert_eq!(samples(&made[2]), [0.45; 16]);
    let entry = made[0].as_list().unwrap().remove(0);
    assert_eq!(entry.get("concat_mask").unwrap().as_tensor().unwrap().shape(), [1, 16, 16]);
    let (model, calls) = believer_of("epsilon", 9);
    sample(model, made[0].clone(), made[1].clone(), made[2].clone(), &[]);
    assert!(calls.lock().unwrap().iter().all(|(shape, _)| *shape == [1, 9, 2, 2]));

    let inputs =
        [("positive", says(1.0)), ("negative", says(0.0)), ("vae", reds()), ("pixels", pixels)];
    let made = run("InstructPixToPixConditioning", &inputs).unwrap();
    assert_eq!(samples(&made[2]), [0.0; 16]);
    // The edit network sees the latent unscaled, 0.9.
    let model = believer_of("epsilon", 8).0;
    let after = sample(model, made[0].clone(), made[1].clone(), made[2].clone(), &[]);
    close(&samples(&after), &[1.9; 16], 1e-4);
    // And nothing where it is given nothing.
    let model = believer_of("epsilon", 8).0;
    close(&samples(&sample(model, says(1.0), says(0.0), empty(1, 2, 2), &[])), &[1.0; 16], 1e-4);
}
