//! The authors' TSV shards: what each row gives by what chance, held against their loaders.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use kosmograph_models::kosmos::preprocess::{PictureTransform, resize_and_crop};
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use kosmograph_models::text::kosmos_tokens::KosmosTokenizer;
use kosmograph_pixels::pillow::{Filter, Picture};
use kosmograph_training::documents::{
    Chance, Document, columns, instructpix2pix, laion, openimage,
};
use serde_json::{Value, json};

use crate::case::Case;
use crate::kosmos::tokenizer_folder;

/// Kosmos-G's pictures, and the side of what it draws.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
const DRAWN: usize = 512;

/// The numbers that a row of the case was read with.
struct Given(VecDeque<Value>);

impl Chance for Given {
    fn share(&mut self) -> f64 {
        self.0.pop_front().and_then(|value| value.as_f64()).expect("one more share")
    }

    fn below(&mut self, end: usize) -> usize {
        // ["randint", first, last, what came].
        let drawn = self.0.pop_front().expect("one more choice");
        assert_eq!(drawn[2].as_u64(), Some(end as u64 - 1), "the choice is of {end}");
        drawn[3].as_u64().expect("a number") as usize
    }
}

pub fn shards(case: &mut Case) -> Result<()> {
    let (folder, there) = tokenizer_folder();
    if !there {
        case.skip(format!(
            "Kosmos-G's tokenizer files are not in {} (set KOSMOGRAPH_KOSMOS_DATA to their folder)",
            folder.display()
        ));
        return Ok(());
    }
    let tokenizer = KosmosTokenizer::read(&folder)?;
    let clip = ClipTokenizer::clip()?;
    let image_tokens = case.size("image_token_length")?;
    case.file("json");
    let rows = case.json("rows.json")?;
    for (kind, rows) in rows.as_object().context("rows.json is no object")? {
        let name = kind.trim_end_matches("_align");
        // LAION's lists name the folder, the others' do not.
        let list = case.json(&format!("json/{name}.train.json"))?;
        let source = list[0]["source"][0].as_str().context("no source")?;
        case.check_equal(kind, &list[0]["source_lang"], &json!(name));
        let source = case.file("data").join(source.trim_start_matches("data/"));
        let text = std::fs::read_to_string(source)?;
        let lines: Vec<&str> = text.trim().split('\n').collect();
        for row in rows.as_array().context("no list")? {
            let number = row["row"].as_u64().context("no row")? as usize;
            let line = lines.get(number).with_context(|| format!("{kind} has no row {number}"))?;
            let draws = row["draws"].as_array().cloned().unwrap_or_default();
            let mut given = Given(draws.into());
            let columns = columns(line);
            let document = match name {
                "laion" => {
                    let align = (kind != name).then_some(&clip);
                    laion(&columns, align, &tokenizer).map_err(anyhow::Error::msg)?
                }
                "instructpix2pix" => instructpix2pix(&columns, &mut given).ok(),
                "openimage" => openimage(&columns, &mut given).ok(),
                other => anyhow::bail!("{other} is no kind of shards"),
            };
            let shown = format!("{kind} row {number} {}", row["variant"].as_str().unwrap_or(""));
            let is_skipped = row["skipped"] == true;
            case.check_equal(&shown, &document.is_none(), &is_skipped);
            let Some(document) = document else { continue };
            check_tokens(case, &shown, &document, row, (&tokenizer, image_tokens))?;
            if kind != name {
                case.check_equal(
                    &format!("{shown}: CLIP's text"),
                    &json!(document.prompt),
                    &row["clip_text"],
                );
                continue;
            }
            let prefix = match row["variant"].as_str() {
                Some(variant) => format!("{kind}.row{number}.{variant}."),
                None => format!("{kind}.row{number}."),
            };
            check_pictures(case, &prefix, &document)?;
        }
    }
    Ok(())
}

fn check_tokens(
    case: &mut Case,
    shown: &str,
    document: &Document,
    row: &Value,
    (tokenizer, image_tokens): (&KosmosTokenizer, usize),
) -> Result<()> {
    let (ids, mask) = match document.sources.len() {
        0 => {
            let ids = tokenizer.negative(&document.prompt);
            let mask = vec![false; ids.len()];
            (ids, mask)
        }
        count => {
            let prompt = tokenizer.prompt(&document.prompt, count, image_tokens)?;
            (prompt.ids, prompt.image_mask)
        }
    };
    // The last token ends the document, and is what the row's collation drops.
    let expected: Vec<u32> = serde_json::from_value(row["tokens"].clone())?;
    let (end, expected) = expected.split_last().context("no tokens")?;
    ensure!(*end == 2, "{shown} does not end with </s>");
    case.check_equal(&format!("{shown}: tokens"), &ids, &expected.to_vec());
    let expected: Vec<u8> = serde_json::from_value(row["input_mask"].clone())?;
    let mask: Vec<u8> = mask.into_iter().map(u8::from).chain([0]).collect();
    case.check_equal(&format!("{shown}: mask"), &mask, &expected);
    Ok(())
}

/// The pictures in the order of the tokens, the target the last, and what the two transforms make of them.
fn check_pictures(case: &mut Case, prefix: &str, document: &Document) -> Result<()> {
    let target = document.target.as_ref().context("no target")?;
    let pictures: Vec<&image::RgbImage> = document.sources.iter().chain([target]).collect();
    for (number, picture) in pictures.iter().enumerate() {
        let name = format!("{prefix}picture{number}_u8_HWC");
        if !case.expects(&name) {
            continue;
        }
        let expected = case.expected(&name)?;
        let expected = expected.flatten_all()?.to_vec1::<u8>()?;
        case.check_equal(&format!("{prefix}picture{number}"), picture.as_raw(), &expected);
    }
    let transform = PictureTransform { size: 224, mean: MEAN, std: STD };
    for (number, picture) in document.sources.iter().enumerate() {
        let name = format!("{prefix}gpt{number}_every16");
        if case.expects(&name) {
            case.check(&name, &every(&transform.pixels(of(picture))?, 16)?)?;
        }
    }
    let name = format!("{prefix}target_every32");
    if !case.expects(&name) {
        return Ok(());
    }
    let cut = resize_and_crop(of(target), DRAWN, Filter::Bilinear)?;
    let pixels = Tensor::from_vec(cut, (DRAWN, DRAWN, 3), &Device::Cpu)?.permute((2, 0, 1))?;
    let pixels = ((pixels.to_dtype(DType::F32)? / 127.5)? - 1.0)?;
    case.check(&name, &every(&pixels, 32)?)
}

fn of(picture: &image::RgbImage) -> Picture<'_> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Picture { pixels: picture.as_raw(), width, height, channels: 3 }
}

/// Every n-th pixel of [3, H, W].
fn every(pixels: &Tensor, n: usize) -> Result<Tensor> {
    let side = pixels.dim(1)? as u32;
    let places: Vec<u32> = (0..side).step_by(n).collect();
    let places = Tensor::new(places, &Device::Cpu)?;
    Ok(pixels.contiguous()?.index_select(&places, 1)?.index_select(&places, 2)?)
}
