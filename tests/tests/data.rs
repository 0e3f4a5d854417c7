//! `kosmograph data`: prompts with pictures of captioned pictures, by masks, by what stands out, and by networks that look.

use std::path::Path;

use anyhow::{Result, ensure};
use image::{Rgb, RgbImage};
use kosmograph_tests::{Run, plugins_dir, repository};
use serde_json::{Value, json};

/// Networks with weights by a formula.
#[path = "../../nodes/vision/tests/networks/formula.rs"]
#[allow(dead_code, reason = "its own tests need all of it")]
mod formula;

fn write(path: &Path, json: &Value) -> Result<()> {
    Ok(std::fs::write(path, json.to_string())?)
}

/// A square of a colour on an even ground.
fn square(colour: [u8; 3]) -> RgbImage {
    RgbImage::from_fn(48, 40, |x, y| {
        let inside = (10..30).contains(&x) && (8..28).contains(&y);
        Rgb(if inside { colour } else { [120 + (x / 8) as u8, 160, 230] })
    })
}

#[test]
fn prompts_with_pictures_are_made_of_captioned_pictures() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let pictures = folder.join("pictures");
    std::fs::create_dir_all(&pictures)?;
    for (name, caption) in [
        ("a", Some("a red square on a table")),
        ("b", Some("the square")),
        ("c", None),
        ("d", Some("a circle")),
        ("e", Some("a square and a square")),
    ] {
        square([220, 30, 30]).save(pictures.join(format!("{name}.png")))?;
        if let Some(caption) = caption {
            std::fs::write(pictures.join(format!("{name}.txt")), caption)?;
        }
    }
    std::fs::write(pictures.join("broken.png"), b"\x89PNG\r\n\x1a\nand no more")?;
    std::fs::write(pictures.join("broken.txt"), "a square")?;
    let path = folder.join("data.json");
    let data = |output: &str, more: Value| -> Result<Run> {
        let mut config = json!({"pictures": "pictures", "output": output, "seed": 5, "data": more});
        if more["masks"].is_string() {
            config["data"]["subjects"] = json!([]);
        }
        write(&path, &config)?;
        Ok(Run::new("data").with_plugins().arg(&path))
    };
    let asked = json!({"subjects": ["square"], "variants": 6});
    data("one", asked.clone())?
        .expect_success()
        .stderr_contains("broken.png is left out")
        .stderr_contains("c.png is left out: it has no caption")
        .stderr_contains("d.png is left out: its caption names none")
        .stderr_contains("e.png is left out: its caption names more than one subject")
        .stderr_contains("12 documents of 2 pictures (of 6)");
    let texts = |folder: &Path| -> Result<Vec<String>> {
        let names = (0..6).flat_map(|k| [format!("a-{k}"), format!("b-{k}")]);
        names.map(|name| Ok(std::fs::read_to_string(folder.join(name + ".txt"))?)).collect()
    };
    let one = folder.join("one");
    let of_a: Vec<String> = texts(&one)?.into_iter().step_by(2).collect();
    let is_known = |text: &String| {
        ["a red square<i> on a table\n", "a red <i> on a table\n"].contains(&&**text)
    };
    ensure!(of_a.iter().all(is_known), "{of_a:?}");
    ensure!(of_a.iter().any(|text| *text != of_a[0]), "words are dropped now and then: {of_a:?}");
    for k in 0..6 {
        let shown = image::open(one.join(format!("a-{k}/1.png")))?.into_rgb8();
        ensure!(shown.dimensions() == (20, 20), "{:?}", shown.dimensions());
        ensure!(shown.pixels().all(|pixel| pixel.0 == [220, 30, 30]), "more than the square");
        let target = image::open(one.join(format!("a-{k}.png")))?.into_rgb8();
        ensure!(target == square([220, 30, 30]), "another picture");
    }

    // The same once more, and after an interruption that left one document half written.
    data("two", asked.clone())?.expect_success();
    ensure!(texts(&one)? == texts(&folder.join("two"))?, "chance hangs on more than the seed");
    std::fs::rename(folder.join("two"), folder.join("three.unfinished"))?;
    std::fs::remove_file(folder.join("three.unfinished/b-3.txt"))?;
    data("three", json!({"subjects": ["square"], "variants": 5}))?
        .expect_code(3)
        .stderr_contains("is of another configuration");
    data("three", asked)?.expect_success();
    ensure!(texts(&one)? == texts(&folder.join("three"))?, "what was left was not gone on with");

    // Masks say what is what where there is more than one subject.
    for (name, from) in [("square", 0), ("table", 24)] {
        let mask =
            RgbImage::from_fn(48, 40, |x, _| Rgb([if x / 24 * 24 == from { 255 } else { 0 }; 3]));
        std::fs::create_dir_all(folder.join("masks/a"))?;
        mask.save(folder.join(format!("masks/a/{name}.png")))?;
    }
    data("four", json!({"masks": "masks", "words_dropped": 1.0, "on_white": 1.0}))?
        .expect_success()
        .stderr_contains("there is no folder");
    let four = folder.join("four");
    ensure!(std::fs::read_to_string(four.join("a-0.txt"))? == "a red <i> on a <i>\n");
    let table = image::open(four.join("a-0/2.png"))?.into_rgb8();
    ensure!(table.dimensions() == (24, 40), "{:?}", table.dimensions());

    // And `instruct` learns from them.
    let tiny = repository().join("models/tiny");
    let learn = folder.join("instruct.json");
    let config = json!({
        "task": "instruct", "model": tiny.join("sd"), "kosmos": tiny.join("kosmos"), "pictures": "one", "output": "kosmos",
        "steps": 1, "batch": 2, "resolution": 64,
    });
    write(&learn, &config)?;
    Run::new("train").with_plugins().arg(&learn).expect_success().stderr_contains("12 documents");

    let told = |config: Value, code: i32, sentence: &str| -> Result<()> {
        write(&path, &config)?;
        Run::new("data").with_plugins().arg(&path).expect_code(code).stderr_contains(sentence);
        Ok(())
    };
    let of = |data: Value| json!({"pictures": "pictures", "output": "five", "data": data});
    told(of(json!({"subjects": ["cat"]})), 3, "holds no picture that a document can be made of")?;
    told(of(json!({})), 3, "nothing says what the subjects are")?;
    told(of(json!({"subjects": ["a"], "on_white": 2})), 3, "\"data.on_white\" is 2")?;
    told(of(json!({"subjects": ["a"], "variants": 0})), 3, "\"data.variants\" is 0")?;
    told(json!({"task": "lora"}), 2, "is no configuration of the task data")?;
    ensure!(!folder.join("five").exists() && !folder.join("five.unfinished").exists());
    Ok(())
}

/// The part of a picture that its mask covers, and where that is not white.
fn covered(picture: &RgbImage, mask: &RgbImage) -> RgbImage {
    let inside = || mask.enumerate_pixels().filter(|(.., pixel)| pixel.0[0] > 127);
    let (left, right) =
        (inside().map(|p| p.0).min().unwrap(), inside().map(|p| p.0).max().unwrap());
    let (top, bottom) =
        (inside().map(|p| p.1).min().unwrap(), inside().map(|p| p.1).max().unwrap());
    RgbImage::from_fn(right - left + 1, bottom - top + 1, |x, y| {
        match mask.get_pixel(x + left, y + top).0[0] > 127 {
            true => *picture.get_pixel(x + left, y + top),
            false => Rgb([255; 3]),
        }
    })
}

#[test]
fn nothing_of_somebody_else_is_touched_and_nothing_is_left_out_untold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let pictures = folder.join("pictures");
    std::fs::create_dir_all(pictures.join("folder.png"))?;
    for (name, caption) in [("a.png", "a square"), ("a.bmp", ""), ("b.png", "a square<i>")] {
        square([220, 30, 30]).save(pictures.join(name))?;
        if !caption.is_empty() {
            std::fs::write(pictures.join(name).with_extension("txt"), caption)?;
        }
    }
    std::fs::write(pictures.join("folder.txt"), "a square")?;
    let path = folder.join("data.json");
    let data = |output: &str, data: Value| -> Result<Run> {
        write(&path, &json!({"pictures": "pictures", "output": output, "data": data}))?;
        Ok(Run::new("data").with_plugins().arg(&path))
    };
    let square = json!({"subjects": ["square"]});
    data("one", square.clone())?
        .expect_success()
        .stderr_contains("a.png is left out: ")
        .stderr_contains("a.bmp has its name")
        .stderr_contains("has a mark of a picture in it already")
        .stderr_contains("folder.png is left out: it is no file")
        .stderr_contains("1 documents of 1 pictures (of 4)");

    // A folder of the name that the unfinished one would have, and a link.
    let own = folder.join("two.unfinished");
    std::fs::create_dir(&own)?;
    std::fs::write(own.join("precious"), "work")?;
    for subject in ["square", "zebra"] {
        data("two", json!({"subjects": [subject]}))?
            .expect_code(3)
            .stderr_contains("two.unfinished is there, and this command did not make it");
        ensure!(std::fs::read_to_string(own.join("precious"))? == "work");
    }
    std::os::unix::fs::symlink(&own, folder.join("three.unfinished"))?;
    data("three", square.clone())?.expect_code(3).stderr_contains("did not make it");
    ensure!(!folder.join("two").exists() && !folder.join("three").exists());
    // An empty one is as good as none; and none is left where nothing was made.
    std::fs::create_dir(folder.join("four.unfinished"))?;
    data("four", square.clone())?.expect_success();
    data("five", json!({"subjects": ["zebra"]}))?.expect_code(3);
    ensure!(!folder.join("five.unfinished").exists());

    // What a document had that an interruption left is gone.
    std::fs::rename(folder.join("four"), folder.join("six.unfinished"))?;
    let half = folder.join("six.unfinished");
    std::fs::remove_file(half.join("a-0.txt"))?;
    std::fs::write(half.join("a-0/2.png"), "an older one")?;
    data("six", square.clone())?.expect_success();
    ensure!(folder.join("six/a-0").read_dir()?.count() == 1, "a cut-out of nothing");

    for (wrong, sentence) in [
        (json!({"subjects": [""]}), "\"data.subjects\" has \"\""),
        (json!({"subjects": ["square "]}), "words without white space around them"),
        (json!({"subjects": "square"}), "\"data.subjects\": invalid type: string"),
        (json!({"subjects": ["square"], "threshold": "0.4"}), "\"data.threshold\": invalid type"),
    ] {
        data("seven", wrong)?.expect_code(3).stderr_contains(sentence);
    }
    data("..", square)?.expect_code(3).stderr_contains("is there already");
    write(&path, &json!({"stages": []}))?;
    Run::new("data").with_plugins().arg(&path).expect_code(2).stderr_contains("has \"stages\"");
    Ok(())
}

#[test]
fn networks_caption_pictures_and_cut_out_what_they_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    for (name, case) in [("blip", "blip"), ("clipseg", "clipseg_refined")] {
        std::fs::create_dir_all(folder.join(name).join(name))?;
        formula::write(
            &folder.join(name).join(name).join("model.safetensors"),
            &formula::shapes(case),
        );
    }
    // What these weights say, whatever they see, is word number 16.
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].into_iter().map(str::to_owned);
    let words = words.chain((5..38).map(|n| if n == 16 { "dog".into() } else { format!("w{n}") }));
    std::fs::write(folder.join("blip/blip/vocab.txt"), words.collect::<Vec<_>>().join("\n"))?;
    std::fs::create_dir_all(folder.join("pictures"))?;
    let seen = RgbImage::from_raw(120, 90, formula::picture(90, 120)).expect("a picture");
    for name in ["said", "unsaid"] {
        seen.save(folder.join(format!("pictures/{name}.png")))?;
    }
    std::fs::write(folder.join("pictures/said.txt"), "a man in a red hat, and no more")?;
    let path = folder.join("data.json");
    let data = |output: &str, more: Value| -> Result<Run> {
        let mut all = json!({"segmenter": "clipseg/clipseg", "threshold": 0.54, "words_dropped": 0.0, "on_white": 1.0});
        all.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        write(&path, &json!({"pictures": "pictures", "output": output, "seed": 5, "data": all}))?;
        Ok(Run::new("data").with_plugins().arg(&path))
    };
    data("one", json!({"captioner": "blip/blip"}))?
        .expect_success()
        .stderr_contains("2 documents of 2 pictures (of 2)");
    let text = |name: &str| std::fs::read_to_string(folder.join("one").join(name));
    ensure!(
        text("said-0.txt")? == "a man<i> in a red hat<i>, and no more\n",
        "{}",
        text("said-0.txt")?
    );
    let unsaid = text("unsaid-0.txt")?;
    ensure!(unsaid.starts_with("dog dog") && unsaid.ends_with("dog<i>\n"), "{unsaid}");

    // What is cut out is what the node's mask covers.
    let graph = json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "said.png"}},
        "2": {"class_type": "CLIPSegLoader", "inputs": {"model_name": "clipseg"}},
        "3": {"class_type": "CLIPSegMask", "inputs": {"clipseg_model": ["2", 0], "image": ["1", 0], "text": "red hat", "threshold": 0.54}},
        "4": {"class_type": "MaskToImage", "inputs": {"mask": ["3", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "mask"}},
    });
    write(&folder.join("mask.json"), &graph)?;
    Run::new("run")
        .with_plugins()
        .arg(folder.join("mask.json"))
        .args([
            "--models".as_ref(),
            folder.as_os_str(),
            "--input".as_ref(),
            folder.join("pictures").as_os_str(),
        ])
        .args(["--out".as_ref(), folder.join("out").as_os_str()])
        .expect_success();
    let mask = std::fs::read_dir(folder.join("out"))?.next().expect("a mask")?.path();
    let hat = image::open(folder.join("one/said-0/2.png"))?.into_rgb8();
    ensure!(hat == covered(&seen, &image::open(mask)?.into_rgb8()), "something else was cut out");

    // Words that are listed are looked for, and no others; a picture without a caption needs somebody who writes it.
    data("two", json!({"subjects": ["hat", "cat"]}))?
        .expect_success()
        .stderr_contains("unsaid.png is left out: it has no caption")
        .stderr_contains("1 documents of 1 pictures (of 2)");
    let two = std::fs::read_to_string(folder.join("two/said-0.txt"))?;
    ensure!(two == "a man in a red hat<i>, and no more\n", "{two}");

    // A word that is longer than CLIP takes is no noun, and a subject of which its beginning is looked for.
    let long = "x".repeat(3000);
    std::fs::write(folder.join("pictures/said.txt"), format!("a {long} and a hat"))?;
    data("four", json!({"captioner": "blip/blip"}))?.expect_success();
    let four = std::fs::read_to_string(folder.join("four/said-0.txt"))?;
    ensure!(four == format!("a {long} and a hat<i>\n"), "{four}");
    data("five", json!({"subjects": [long]}))?.expect_success();
    std::fs::write(folder.join("pictures/said.txt"), "a man in a red hat, and no more")?;

    // Nothing that is probable enough, and what cannot be.
    data("three", json!({"threshold": 0.99}))?
        .expect_code(3)
        .stderr_contains("said.png is left out: none of \"man\", \"red hat\" can be seen in it");
    data("three", json!({"threshold": 1.0}))?
        .expect_code(3)
        .stderr_contains("\"data.threshold\" is 1");
    data("three", json!({"masks": "masks"}))?
        .expect_code(3)
        .stderr_contains("both say what subjects cover");
    data("three", json!({"segmenter": "nowhere"}))?
        .expect_code(3)
        .stderr_contains("\"data.segmenter\": ");
    data("three", json!({"captioner": "clipseg/clipseg"}))?
        .expect_code(3)
        .stderr_contains("\"data.captioner\": ")
        .stderr_contains("those of another network");
    // A program that has no library beside it that sees.
    let alone = tempfile::tempdir()?;
    let program = alone.path().join("kosmograph");
    std::fs::copy(kosmograph_tests::kosmograph(), &program)?;
    let diffusion = "libkosmograph_diffusion.so";
    std::os::unix::fs::symlink(plugins_dir().join(diffusion), alone.path().join(diffusion))?;
    data("three", json!({"threshold": 0.99}))?.expect_code(3);
    let ended = std::process::Command::new(&program).arg("data").arg(&path).output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() == Some(2), "{said}");
    ensure!(said.contains("networks of the node library vision, which was not found"), "{said}");
    ensure!(!folder.join("three").exists() && !folder.join("three.unfinished").exists());
    Ok(())
}
