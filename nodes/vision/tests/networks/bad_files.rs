//! Files that are not what they seem: a sentence each, that says where and what would be right.

use std::fs;
use std::path::Path;

use node::Value;

use crate::formula::{Shapes, shapes, weights, write, write_with};
use crate::nodes::{image, path, run, vocabulary};

/// The loader of each network, its input and its case.
const LOADERS: [(&str, &str, &str); 5] = [
    ("DepthAnythingV2Preprocessor", "ckpt_name", "depth"),
    ("SAMLoader", "model_name", "sam"),
    ("DINOv2Loader", "model_name", "dinov2"),
    ("BLIPLoader", "blip_name", "blip"),
    ("CLIPSegLoader", "model_name", "clipseg_refined"),
];

fn refused(class: &str, input: &str, file: &Path) -> String {
    let mut inputs = vec![(input, path(file))];
    if class == "DepthAnythingV2Preprocessor" {
        inputs.push(("image", image(40, 61)));
        inputs.push(("resolution", Value::from(64i64)));
    }
    let error = run(class, &inputs).unwrap_err();
    assert!(!error.contains("panicked") && !error.ends_with('.'), "{class}: {error}");
    error
}

fn check(damage: impl Fn(&mut Shapes, &Path, &Path), sentences: [&str; 5]) {
    for ((class, input, case), sentence) in LOADERS.into_iter().zip(sentences) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        fs::write(folder.path().join("vocab.txt"), vocabulary()).unwrap();
        let mut shapes = shapes(case);
        write(&file, &shapes);
        damage(&mut shapes, &file, folder.path());
        let error = refused(class, input, &file);
        assert!(error.contains(sentence), "{class}: {error}");
        assert!(error.contains(input), "{class}: {error}");
    }
}

#[test]
fn a_file_of_another_network_is_named() {
    let other = |_: &mut Shapes, file: &Path, _: &Path| {
        write(
            file,
            &[("model.diffusion_model.input_blocks.0.0.weight".to_owned(), vec![4, 4])].into(),
        );
    };
    check(
        other,
        [
            "input_blocks.0.0.weight` …) are those of another network; Depth Anything V2",
            "are those of another network; Segment Anything",
            "are those of another network; DINOv2",
            "are those of another network; a BLIP of captions",
            "are those of another network; CLIPSeg",
        ],
    );
    // Each of ours is none of the others.
    for (class, input, own) in LOADERS {
        for (_, _, case) in LOADERS.iter().filter(|(_, _, case)| *case != own) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("model.safetensors");
            write(&file, &shapes(case));
            let error = refused(class, input, &file);
            assert!(error.contains("those of another network"), "{class} of {case}: {error}");
        }
    }
}

#[test]
fn a_file_that_ends_early_is_none() {
    let cut = |_: &mut Shapes, file: &Path, _: &Path| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() - 1000]).unwrap();
    };
    check(cut, ["is not a whole safetensors file"; 5]);
    let empty = |_: &mut Shapes, file: &Path, _: &Path| fs::write(file, "").unwrap();
    check(empty, ["model.safetensors"; 5]);
}

#[test]
fn headers_that_lie_are_refused_before_memory_is_taken() {
    // Half of the file's shapes say another width.
    let wide = |shapes: &mut Shapes, file: &Path, _: &Path| {
        for (name, shape) in shapes.iter_mut() {
            if name.ends_with("bias") {
                shape[0] += 1;
            }
        }
        write(file, shapes);
    };
    check(wide, ["its configuration asks for"; 5]);
    let missing = |shapes: &mut Shapes, file: &Path, _: &Path| {
        shapes.retain(|name, _| {
            !name.ends_with("layers.0.projection.bias")
                && !name.contains("lin2.bias")
                && !name.ends_with("1.mlp.fc2.bias")
                && !name.ends_with("film_add.bias")
                && !name.ends_with("1.output.dense.bias")
        });
        write(file, shapes);
    };
    check(missing, ["has no tensor"; 5]);
    let more = |shapes: &mut Shapes, file: &Path, _: &Path| {
        shapes.insert("more.weight".into(), vec![3]);
        write(file, shapes);
    };
    check(more, ["holds 1 tensors that this model does not have, among them `more.weight`"; 5]);
    let damaged = |shapes: &mut Shapes, file: &Path, _: &Path| {
        write_with(file, shapes, |name, shape| {
            let mut values = weights(name, shape);
            if name.ends_with("bias") {
                values[0] = f32::NAN;
            }
            values
        });
    };
    // Headers are whole: the numbers are looked at with the first use, in loaders that is later.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    damaged(&mut shapes("depth"), &file, folder.path());
    let error = refused("DepthAnythingV2Preprocessor", "ckpt_name", &file);
    assert!(error.contains("is damaged: its value number 0 is NaN"), "{error}");
}

#[test]
fn shapes_that_no_network_has_are_told() {
    let odd = |name: &'static str, axis: usize, size: usize| {
        move |shapes: &mut Shapes, file: &Path| {
            shapes.get_mut(name).unwrap()[axis] = size;
            write(file, shapes);
        }
    };
    type Damage = Box<dyn Fn(&mut Shapes, &Path)>;
    let cases: [(usize, Damage, &str); 8] = [
        (0, Box::new(odd("backbone.embeddings.position_embeddings", 1, 27)), "27 positions"),
        (
            1,
            Box::new(odd("vision_encoder.layers.0.attn.rel_pos_h", 0, 6)),
            "6 and 5 relative positions",
        ),
        (
            1,
            Box::new(odd("vision_encoder.layers.0.attn.rel_pos_h", 1, 60)),
            "no multiple of the 60 numbers",
        ),
        (
            2,
            Box::new(odd("embeddings.patch_embeddings.projection.weight", 1, 4)),
            "with 4 channels",
        ),
        (3, Box::new(odd("vision_model.embeddings.position_embedding", 1, 18)), "18 positions"),
        (
            3,
            Box::new(odd("text_decoder.bert.embeddings.word_embeddings.weight", 1, 60)),
            "attention of width 60",
        ),
        (
            4,
            Box::new(odd("clip.vision_model.embeddings.position_embedding.weight", 0, 11)),
            "11 positions",
        ),
        (
            4,
            Box::new(odd("clip.text_model.embeddings.token_embedding.weight", 1, 60)),
            "attention of width 60",
        ),
    ];
    for (loader, damage, sentence) in cases {
        let (class, input, case) = LOADERS[loader];
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        fs::write(folder.path().join("vocab.txt"), vocabulary()).unwrap();
        damage(&mut shapes(case), &file);
        let error = refused(class, input, &file);
        assert!(error.contains(sentence), "{class}: {error}");
    }
}

#[test]
fn a_blip_wants_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &shapes("blip"));
    let of = |name: &str, text: &[u8]| {
        for other in ["vocab.txt", "tokenizer.json"] {
            let _ = fs::remove_file(folder.path().join(other));
        }
        if !name.is_empty() {
            fs::write(folder.path().join(name), text).unwrap();
        }
        refused("BLIPLoader", "blip_name", folder.path())
    };
    assert!(of("", b"").contains("neither tokenizer.json nor vocab.txt"));
    assert!(of("vocab.txt", b"a\nb\n").contains("it has no [SEP]"));
    assert!(of("vocab.txt", b"\xff\xfe").contains("no text in UTF-8"));
    assert!(of("tokenizer.json", b"{").contains("it is no vocabulary of BERT"));
    assert!(of("vocab.txt", &vec![b'a'; (16 << 20) + 1]).contains("longer than 16 MB"));
    // One that answers questions is none that makes captions.
    let mut answering = shapes("blip");
    answering.insert("text_encoder.embeddings.word_embeddings.weight".into(), vec![4, 4]);
    write(&file, &answering);
    fs::write(folder.path().join("vocab.txt"), vocabulary()).unwrap();
    let error = refused("BLIPLoader", "blip_name", folder.path());
    assert!(error.contains("answers questions"), "{error}");
}
