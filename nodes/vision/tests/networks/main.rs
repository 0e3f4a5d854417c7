//! The networks at small sizes, with weights by a formula in the names and kinds of shapes that are published, held against transformers'
//! (data/make.py); the nodes from a picture to a hint, a mask, features and a caption; and files that are not what they seem.

mod bad_files;
mod formula;
mod nodes;

use candle_core::Device;
use kosmograph_models::Weights;
use kosmograph_vision::blip::{self, Blip};
use kosmograph_vision::clipseg::{self, ClipSeg};
use kosmograph_vision::depth_anything::{self, DepthAnything};
use kosmograph_vision::dinov2::{self, DinoV2};
use kosmograph_vision::sam::{self, Prompt, Sam};

use formula::{assert_close, authors, pixels, shapes, weights, write, write_with};

/// The weights of a case, and what keeps the file.
fn open(case: &str) -> (Weights, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &shapes(case));
    (Weights::open(&file, &Device::Cpu).unwrap(), folder)
}

fn flat(tensor: &candle_core::Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn dinov2_is_transformers() {
    for case in ["dinov2", "dinov2_giant"] {
        let (weights, _folder) = open(case);
        let weights = dinov2::by_transformers_names(&weights).unwrap();
        let network = DinoV2::load(&weights).unwrap();
        weights.finish(&[dinov2::TOLERATED]).unwrap();
        let last = network.depth() - 1;
        let mut heard = Vec::new();
        let tokens = network.tokens(&pixels((1, 3, 56, 84)), &[last], |done, of| {
            heard.push((done, of));
            Ok(())
        });
        assert_close(&format!("{case}.tokens"), &flat(&tokens.unwrap()[0]));
        assert_eq!(heard, [(1, 2), (2, 2)]);
    }
}

#[test]
fn depth_is_transformers_under_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let (own, published) =
        (folder.path().join("hf.safetensors"), folder.path().join("own.safetensors"));
    let shapes = shapes("depth");
    write(&own, &shapes);
    // The authors' file holds queries, keys and values in one.
    let authors = authors();
    let their_shapes = authors.iter().map(|(name, parts)| {
        let mut shape = shapes[&parts[0]].clone();
        shape[0] *= parts.len();
        (name.clone(), shape)
    });
    write_with(&published, &their_shapes.collect(), |name, _| {
        authors[name].iter().flat_map(|part| weights(part, &shapes[part])).collect()
    });
    for file in [own, published] {
        let weights = Weights::open(&file, &Device::Cpu).unwrap();
        let weights = depth_anything::by_transformers_names(&weights).unwrap();
        let network = DepthAnything::load(&weights).unwrap();
        weights.finish(&depth_anything::TOLERATED).unwrap();
        let depth = network.forward(&pixels((1, 3, 70, 98)), |_, _| Ok(())).unwrap();
        assert_eq!(depth.dims(), [1, 70, 98]);
        assert_close("depth.depth", &flat(&depth));
    }
}

#[test]
fn sam_is_transformers() {
    let (weights, _folder) = open("sam");
    let weights = sam::by_authors_names(&weights).unwrap();
    let network = Sam::load(&weights).unwrap();
    weights.finish(&[sam::TOLERATED]).unwrap();
    assert_eq!(network.size(), 128);
    let states = network.encode(&pixels((1, 3, 128, 128))).unwrap();
    assert_close("sam.states", &flat(&states));
    let points = vec![(30.0, 40.0, true), (100.5, 90.0, false)];
    let corners = Some([20.0, 10.0, 90.0, 100.0]);
    for (name, prompt, one) in [
        ("points", Prompt { points: points.clone(), corners: None }, false),
        ("box", Prompt { points: vec![], corners }, true),
        ("both", Prompt { points, corners }, false),
    ] {
        let (masks, quality) = network.masks(&states, &prompt, one).unwrap();
        assert_close(&format!("sam.{name}.masks"), &flat(&masks));
        assert_close(&format!("sam.{name}.quality"), &quality);
    }
    assert!(network.masks(&states, &Prompt::default(), true).is_err());
}

#[test]
fn blip_says_what_transformers_says() {
    let (weights, _folder) = open("blip");
    let weights = blip::of_captions(&weights).unwrap();
    let network = Blip::load(&weights).unwrap();
    weights.finish(&blip::TOLERATED).unwrap();
    assert_eq!(network.size(), 32);
    let pixels = pixels((1, 3, 32, 32));
    for (name, begun) in [("free", vec![38]), ("begun", vec![38, 11, 12])] {
        let said = network.sentence(&pixels, &begun, 3, 12, |_, _| Ok(())).unwrap();
        let said: Vec<f32> = said.iter().map(|token| *token as f32).collect();
        assert_eq!(said, formula::expected(&format!("blip.{name}.said")), "{name}");
    }
    assert_close("blip.scores", &flat(&network.scores(&pixels, &[38, 11, 12]).unwrap()));
    let stopped = network.sentence(&pixels, &[38], 3, 12, |said, _| match said {
        3 => Err(kosmograph_models::Error::Cancelled),
        _ => Ok(()),
    });
    assert!(matches!(stopped, Err(kosmograph_models::Error::Cancelled)));
    let error = network.sentence(&pixels, &[40], 3, 12, |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("token 40 is none of the 40"), "{error}");
}

#[test]
fn clipseg_is_transformers() {
    for case in ["clipseg", "clipseg_refined"] {
        let (weights, _folder) = open(case);
        let network = ClipSeg::load(&weights).unwrap();
        weights.finish(&clipseg::TOLERATED).unwrap();
        assert_eq!(network.size(), 352);
        let seen = network.look(&pixels((1, 3, 80, 80))).unwrap();
        let texts: [&[u32]; 2] =
            [&[49406, 320, 1929, 49407], &[49406, 518, 736, 3801, 525, 518, 1823, 49407]];
        let words: Vec<_> = texts.iter().map(|ids| network.words(ids).unwrap()).collect();
        let together = candle_core::Tensor::cat(&words, 0).unwrap();
        assert_close(&format!("{case}.scores"), &flat(&network.scores(&seen, &together).unwrap()));
        let error = network.look(&pixels((1, 3, 80, 72))).err().unwrap().to_string();
        assert!(error.contains("72 × 80 pixels cannot be cut into patches of 16"), "{error}");
        assert!(network.words(&[320; 78]).is_err());
    }
}
