//! "check/1": conditionings, ControlNets, LoRAs and IP-Adapters that were made for another family of models than the one they are used
//! with, found in the files' headers.
//!
//! What tells the families apart is the width of the text that a U-Net reads: 768 numbers of Stable Diffusion 1 and of Kosmos-G, 2048 of
//! SDXL, 1280 of its refiner.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Device;
use kosmograph_models::Weights;
use kosmograph_models::files::python_json;
use kosmograph_models::lora;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::ip_adapter::IpAdapterConfig;
use node::{Inputs, Remark};
use serde_json::Value as Json;

use crate::control::{ACN_AdvancedControlNetApply, ControlNetApply, ControlNetApplyAdvanced};
use crate::gguf::{CLIPLoaderGGUF, DualCLIPLoaderGGUF, UnetLoaderGGUF};
use crate::ip_adapter::nodes::IPAdapterModelLoader;
use crate::loaders::{
    CLIPLoader, CheckpointLoaderSimple, ControlNetLoader, ControlNetLoaderAdvanced,
    DiffusersLoader, DualCLIPLoader, UNETLoader,
};
use crate::lora::{LoraLoader, LoraLoaderModelOnly};
use crate::text::CLIPTextEncode;
use crate::text_sdxl::CLIPTextEncodeSDXL;

/// The other library's, whose output is a conditioning, and what loads its model.
const ALIGNER: &str = "Aligner";
const KOSMOS_LOADER: &str = "KosmosLoader";

/// What does not go together in `plan`: each is refused where it is sampled.
pub fn remarks(plan: &Json) -> Vec<Remark> {
    let mut families = Families { plan, widths: BTreeMap::new() };
    let mut remarks = Vec::new();
    for (number, step) in plan["steps"].as_array().into_iter().flatten().enumerate() {
        let inputs = &step["inputs"];
        remarks.extend(families.adapter(number, step));
        // Of samplers, and of guiders.
        let sides =
            ["positive", "negative", "conditioning", "cond1", "cond2", "empty_conditioning"];
        // Whatever samples has a model and a conditioning for it.
        if inputs["model"].is_null() || sides.iter().all(|side| inputs[*side].is_null()) {
            continue;
        }
        let Some(wanted) = families.model(&inputs["model"]) else { continue };
        let mut told = BTreeSet::new();
        for side in sides {
            let walked = families.conditioning(&inputs[side]);
            for Given { step, input, made } in walked {
                let (step, input) = match step {
                    Some(step) => (step, input),
                    None => (number, side),
                };
                if made.width != wanted.width && told.insert((step, input)) {
                    let message = format!(
                        "{} is {} numbers wide, but {} takes {}: they are of different families of models",
                        made.what, made.width, wanted.what, wanted.width
                    );
                    remarks.push(refused(step, input, message));
                }
            }
        }
    }
    remarks
}

fn refused(step: usize, input: &str, message: String) -> Remark {
    Remark { step, input: input.to_owned(), message, is_refused: true }
}

/// A width, and whose it is.
#[derive(Clone)]
struct Width {
    width: usize,
    what: String,
}

/// What comes along the links to a sampler.
struct Given {
    /// Where it is told, if not at the sampler's own input.
    step: Option<usize>,
    input: &'static str,
    made: Width,
}

struct Families<'a> {
    plan: &'a Json,
    /// What was read of a file, by the part that was wanted.
    widths: BTreeMap<(String, &'static str), Option<usize>>,
}

impl<'a> Families<'a> {
    /// The step that a link leads to, and the output. Links lead to earlier steps, so a walk along them ends.
    fn step(&self, link: &Json) -> Option<(usize, &'a Json, u64)> {
        let step = usize::try_from(link["from"][0].as_u64()?).ok()?;
        Some((step, &self.plan["steps"][step], link["from"][1].as_u64()?))
    }

    /// The width that `read` finds in a file; what is wrong with the file its loader tells.
    fn of_file(
        &mut self,
        file: &Json,
        part: &'static str,
        read: impl Fn(&Path) -> Option<usize>,
    ) -> Option<Width> {
        let path = file["file"].as_str()?;
        let key = (path.to_owned(), part);
        let width = *self.widths.entry(key).or_insert_with(|| read(Path::new(path)));
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        Some(Width { width: width?, what: format!("{part} ({name})") })
    }

    /// The step at the end of a chain of links, along the inputs called `input`, that is of a class of `ends`, and what it is there.
    fn end<T: Copy>(&self, link: &Json, input: &str, ends: &[(&str, T)]) -> Option<(&'a Json, T)> {
        let (_, mut step, _) = self.step(link)?;
        loop {
            let class = step["class"].as_str()?;
            if let Some((_, end)) = ends.iter().find(|(end, _)| *end == class) {
                return Some((&step["inputs"], *end));
            }
            // What changes one has it as this input.
            (_, step, _) = self.step(&step["inputs"][input])?;
        }
    }

    /// What the U-Net at the end of a chain of models reads.
    fn model(&mut self, link: &Json) -> Option<Width> {
        let loaders = [
            (CheckpointLoaderSimple::CLASS.name, "ckpt_name"),
            (DiffusersLoader::CLASS.name, "model_path"),
            (UNETLoader::CLASS.name, "unet_name"),
            (UnetLoaderGGUF::CLASS.name, "unet_name"),
        ];
        let (inputs, file) = self.end(link, "model", &loaders)?;
        self.of_file(&inputs[file], "the U-Net", |path| {
            let checkpoint = Checkpoint::open(path, &Device::Cpu).ok()?;
            Some(checkpoint.unet().ok()?.0.encoder.cross_attention_dim)
        })
    }

    /// A LoRA or an IP-Adapter on a U-Net that reads other text than it was trained with.
    fn adapter(&mut self, number: usize, step: &Json) -> Option<Remark> {
        let (inputs, class) = (&step["inputs"], step["class"].as_str()?);
        let loras = [LoraLoader::CLASS.name, LoraLoaderModelOnly::CLASS.name];
        let (input, made) = if loras.contains(&class) {
            if inputs["strength_model"]["value"].as_f64() == Some(0.0) {
                return None;
            }
            let made = self.of_file(&inputs["lora_name"], "the LoRA", |path| {
                lora::text_width(&Weights::open(path, &Device::Cpu).ok()?)
            });
            ("lora_name", made?)
        } else {
            let loader = [(IPAdapterModelLoader::CLASS.name, "ipadapter_file")];
            let (loaded, file) = self.end(&inputs["ipadapter"], "ipadapter", &loader)?;
            let made = self.of_file(&loaded[file], "the IP-Adapter", |path| {
                let weights = Weights::open(path, &Device::Cpu).ok()?;
                Some(IpAdapterConfig::from_weights(&weights).ok()?.context_width)
            });
            ("ipadapter", made?)
        };
        let wanted = self.model(&inputs["model"])?;
        (made.width != wanted.width).then(|| {
            let message = format!(
                "{} was made for a U-Net that reads text of {} numbers, but {} takes {}: they are of different families of \
                 models",
                made.what, made.width, wanted.what, wanted.width
            );
            refused(number, input, message)
        })
    }

    /// What a conditioning is made of: texts, and the ControlNets that were put on the way.
    fn conditioning(&mut self, link: &Json) -> Vec<Given> {
        let texts = [CLIPTextEncode::CLASS.name, CLIPTextEncodeSDXL::CLASS.name];
        let applies = [
            ControlNetApply::CLASS.name,
            ControlNetApplyAdvanced::CLASS.name,
            ACN_AdvancedControlNetApply::CLASS.name,
        ];
        let (mut given, mut seen) = (Vec::new(), BTreeSet::new());
        let mut open: Vec<_> = self.step(link).into_iter().collect();
        while let Some((number, step, output)) = open.pop() {
            if !seen.insert((number, output)) {
                continue;
            }
            let inputs = &step["inputs"];
            let class = step["class"].as_str().unwrap_or_default();
            let made = match class {
                class if texts.contains(&class) => self.clip(&inputs["clip"]),
                ALIGNER => self.aligner(&inputs["kosmos"]),
                _ => None,
            };
            given.extend(made.map(|made| Given { step: None, input: "", made }));
            if applies.contains(&class) {
                let made = self.control_net(&inputs["control_net"]);
                given.extend(made.map(|made| Given {
                    step: Some(number),
                    input: "control_net",
                    made,
                }));
            }
            // A node of both sides gives them in this order.
            let sides: &[&str] = match (inputs["positive"].is_null(), output) {
                (false, 0) => &["positive"],
                (false, 1) => &["negative"],
                (false, _) => &[],
                (true, _) => &[
                    "conditioning",
                    "conditioning_1",
                    "conditioning_2",
                    "conditioning_to",
                    "conditioning_from",
                ],
            };
            open.extend(sides.iter().filter_map(|side| self.step(&inputs[*side])));
        }
        given
    }

    /// What the text encoders at the end of a chain of CLIPs give together.
    fn clip(&mut self, link: &Json) -> Option<Width> {
        let loaders: [(&str, &[&str]); 6] = [
            (CheckpointLoaderSimple::CLASS.name, &["ckpt_name"]),
            (DiffusersLoader::CLASS.name, &["model_path"]),
            (CLIPLoader::CLASS.name, &["clip_name"]),
            (CLIPLoaderGGUF::CLASS.name, &["clip_name"]),
            (DualCLIPLoader::CLASS.name, &["clip_name1", "clip_name2"]),
            (DualCLIPLoaderGGUF::CLASS.name, &["clip_name1", "clip_name2"]),
        ];
        let (inputs, files) = self.end(link, "clip", &loaders)?;
        let mut sum: Option<Width> = None;
        for file in files {
            let one = self.of_file(&inputs[*file], "the text", |path| {
                let checkpoint = Checkpoint::open(path, &Device::Cpu).ok()?;
                let encoders = checkpoint.text_encoders().ok()?;
                Some(encoders.iter().map(|encoder| encoder.config.hidden_size).sum())
            })?;
            let before = sum.map_or(0, |sum| sum.width);
            sum = Some(Width { width: before + one.width, what: one.what });
        }
        sum
    }

    /// What Kosmos-G's aligner gives.
    fn aligner(&mut self, link: &Json) -> Option<Width> {
        let (inputs, file) = self.end(link, "kosmos", &[(KOSMOS_LOADER, "kosmos_name")])?;
        self.of_file(&inputs[file], "what Kosmos-G gives", |folder| {
            let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
            let config = python_json::parse(&text, "config.json").ok()?;
            usize::try_from(config["aligner"]["dim"].as_u64()?).ok()
        })
    }

    /// What the U-Net reads that a ControlNet is a copy of.
    fn control_net(&mut self, link: &Json) -> Option<Width> {
        let loaders = [
            (ControlNetLoader::CLASS.name, "control_net_name"),
            (ControlNetLoaderAdvanced::CLASS.name, "control_net_name"),
        ];
        let (inputs, file) = self.end(link, "control_net", &loaders)?;
        self.of_file(&inputs[file], "the ControlNet", |path| {
            let checkpoint = Checkpoint::open(path, &Device::Cpu).ok()?;
            match checkpoint.is_t2i_adapter() {
                true => None,
                false => Some(checkpoint.control_net().ok()?.0.cross_attention_dim()),
            }
        })
    }
}
