//! Nodes by the names of packs.

use node::Value;

use super::host::{one, run, samples, tensor, values};
use super::models::reds;
use super::says;

fn text(text: &str) -> Value {
    Value::string(text)
}

#[test]
fn proportions_have_sizes() {
    for (class, ratio, swap, width, height) in [
        ("CR SD1.5 Aspect Ratio", "custom", "Off", 512, 512),
        ("CR SD1.5 Aspect Ratio", "3:4 portrait 512x682", "Off", 512, 682),
        ("CR SD1.5 Aspect Ratio", "2.39:1 anamorphic 1224x512", "On", 512, 1224),
        ("CR SDXL Aspect Ratio", "custom", "Off", 1024, 1024),
        ("CR SDXL Aspect Ratio", "9:21 portrait 640x1536", "Off", 640, 1536),
        ("CR SDXL Aspect Ratio", "5:8 portrait 832x1216", "On", 1216, 832),
    ] {
        let inputs = [
            ("aspect_ratio", text(ratio)),
            ("swap_dimensions", text(swap)),
            ("batch_size", 2i64.into()),
            ("upscale_factor", 1.5.into()),
        ];
        let made = run(class, &inputs).unwrap();
        assert_eq!((made[0].as_i64(), made[1].as_i64()), (Some(width), Some(height)), "{ratio}");
        assert_eq!((made[2].as_f64(), made[3].as_i64()), (Some(1.5), Some(2)));
        let shape = made[4].get("samples").unwrap().as_tensor().unwrap().shape();
        assert_eq!(shape, [2, 4, height as usize / 8, width as usize / 8], "{ratio}");
    }
}

#[test]
fn an_inpainting_conditioning_has_a_latent_of_what_is_grey() {
    let pixels = tensor(&[1, 32, 32, 3], (0..32 * 32 * 3).map(|i| (i % 7) as f32 / 7.0).collect());
    let mask: Vec<f32> = (0..32 * 32).map(|i| if i % 32 < 16 { 0.7 } else { 0.3 }).collect();
    let inputs = [
        ("positive", says(0.7)),
        ("negative", says(-0.2)),
        ("vae", reds()),
        ("pixels", pixels),
        ("mask", tensor(&[1, 32, 32], mask)),
    ];
    let made = run("INPAINT_VAEEncodeInpaintConditioning", &inputs).unwrap();
    let whole = run("InpaintModelConditioning", &inputs).unwrap();
    assert_eq!(samples(&made[3]), samples(&whole[2]));
    let entry = whole[0].as_list().unwrap().remove(0);
    assert_eq!(samples(&made[2]), values(&entry.get("concat_latent").unwrap()));
    // Whole numbers: what is made anew, and what is not.
    let mask = values(&made[2].get("noise_mask").unwrap());
    assert!(mask.iter().all(|value| *value == 0.0 || *value == 1.0) && mask.contains(&1.0));
    let encoded = one("VAEEncode", &[inputs[3].clone(), inputs[2].clone()]);
    let likeliest = one("VAEEncodeArgMax", &[inputs[3].clone(), inputs[2].clone()]);
    assert_eq!(samples(&encoded), samples(&likeliest));
}

#[test]
fn a_control_is_put_on_where_it_is_switched_on() {
    let hint = tensor(&[1, 32, 32, 3], vec![0.5; 32 * 32 * 3]);
    let of = |switch: &str, strength: f64| {
        let inputs = [
            ("conditioning", says(0.7)),
            ("control_net", super::models::pusher()),
            ("image", hint.clone()),
            ("switch", text(switch)),
            ("strength", strength.into()),
        ];
        let made = run("CR Apply ControlNet", &inputs).unwrap().remove(0);
        let entry = made.as_list().unwrap().remove(0);
        // It is for this side alone.
        assert!(entry.get("control_covers_negative").is_none());
        entry.get("control").map_or(0, |controls| controls.as_list().unwrap().len())
    };
    assert_eq!([of("On", 0.8), of("Off", 0.8), of("On", 0.0)], [1, 0, 0]);
}
