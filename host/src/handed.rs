//! Pictures that cross between `kosmograph jobs` and the program above it in memory, and not as files.
//!
//! The memory is the program's own: an anonymous file (memfd_create) that is opened here by its name below /proc. So the end
//! of whichever process leaves nothing behind, and a worker that is started again finds what the first one was given.
//!
//! A picture that comes stands in the place of a node that loads one, or at an input: in the graph it is a node of a
//! class that no library has and that is named by a hash of its numbers, so that equal pictures are computed with once. A
//! picture that goes is what an output node was given at an input of type IMAGE, in the f32 that it was computed in.

use crate::catalogue::{Catalogue, DescriptorError, InputKind, types_fit};
use crate::changes::{self, ChangeError, Place};
use crate::graph::{Graph, Input, Node, Origin};
use crate::plugin::NodeFailure;
use crate::problem::{Kind, Problem, nearest};
use crate::value::Value;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What stands for a library's path in a catalogue and in a plan.
const LIBRARY: &str = "kosmograph:pictures in memory";
/// The input of each of its classes.
const INPUT: &str = "picture";
/// Whoever maps a part of a file begins where a page does, however large pages are on a machine.
const PAGE: u64 = 64 << 10;
/// Above this a float is no part of a picture from 0 to 1, but most likely a byte's value.
const BRIGHTEST: f32 = 2.0;

/// The classes: number, name and the types of their outputs.
const CLASSES: [(&str, &[&str]); 3] = [
    ("picture in memory", &["IMAGE", "MASK"]),
    ("image in memory", &["IMAGE"]),
    ("mask in memory", &["MASK"]),
];

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// 0 to 255, for 0 to 1.
    Uint8,
    Float32,
}

/// A picture, as a job's line says it: numbers that follow each other, from `offset` bytes on in the file `path`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    pub path: PathBuf,
    #[serde(default)]
    pub offset: u64,
    pub dtype: Element,
    pub shape: Vec<u64>,
}

/// The same under its name in the graph, with the shape that it has there: `[B, H, W, C]`, a mask `[B, H, W]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    name: String,
    picture: Picture,
}

/// What a run has in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub given: Vec<Given>,
    /// The file that pictures for whoever gave the job are appended to.
    pub out: Option<PathBuf>,
}

/// A picture that was handed over: f32, `shape`, from `offset` bytes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// The output node's input.
    pub input: String,
    pub offset: u64,
    pub shape: Vec<i64>,
}

/// Adds the classes that pictures in memory are.
///
/// # Errors
/// None that can be.
pub fn add_to(catalogue: &mut Catalogue) -> Result<(), DescriptorError> {
    let nodes: Vec<Json> = CLASSES
        .iter()
        .map(|(class, outputs)| {
            let outputs: Vec<Json> =
                outputs.iter().map(|kind| json!({"name": kind, "type": kind})).collect();
            json!({"class": class, "outputs": outputs,
                "inputs": [{"name": INPUT, "type": "STRING", "default": ""}]})
        })
        .collect();
    let descriptor = json!({"name": "pictures in memory", "version": "1", "nodes": nodes});
    catalogue.add(Path::new(LIBRARY), &descriptor).map(|_| ())
}

/// Whether this is where those classes are from.
pub fn is_library(path: &Path) -> bool {
    path.as_os_str() == LIBRARY
}

/// Puts each picture where its name says: NODE is what the node would give, NODE.INPUT what an input is given.
///
/// # Errors
/// There is no such place, no picture can stand there, or the picture is none: a problem that names the node.
pub fn give(
    graph: &mut Graph,
    catalogue: &Catalogue,
    pictures: &Map<String, Json>,
) -> Result<Vec<Given>, Problem> {
    let mut given = Vec::new();
    for (place, picture) in pictures {
        let told = format!("inputs[\"{place}\"]");
        let wrong = |kind, sentence: String| Problem::new(kind, sentence);
        let picture: Picture = serde_json::from_value(picture.clone())
            .map_err(|error| wrong(Kind::Arguments, format!("{told}: {error}")))?;
        let arguments = |error: ChangeError| wrong(Kind::Arguments, error.to_string());
        let found = changes::find_node(graph, place, &told).map_err(arguments)?;
        if found.is_none() && !place.contains('.') {
            let names = graph.nodes().iter().flat_map(|node| {
                node.title().into_iter().chain([node.class.as_str(), node.id.as_str()])
            });
            let nearest = nearest(place, names).map(str::to_owned);
            let (given, name) = (told, place.clone());
            return Err(arguments(ChangeError::NoNode { given, name, nearest }));
        }
        match found {
            Some(position) => {
                let name = graph.nodes()[position].name();
                let number = stands_for(graph, catalogue, position).map_err(|sentence| {
                    wrong(Kind::ReturnTypeMismatch, sentence).at(name.clone())
                })?;
                let one = picture
                    .named(CLASSES[number].1[0] == "MASK")
                    .map_err(|sentence| wrong(Kind::InvalidInputType, sentence).at(name))?;
                let node = graph.inputs_mut(position);
                node.class = CLASSES[number].0.to_owned();
                node.inputs = vec![named_input(&one)];
                given.push(one);
            }
            None => {
                let at = Place::find(graph, catalogue, place, &told).map_err(arguments)?;
                let name = graph.nodes()[at.position()].name();
                let here =
                    |kind, sentence| wrong(kind, sentence).at(name.clone()).input(at.input());
                let is_mask = takes(&at, graph, catalogue, picture.shape.len())
                    .map_err(|sentence| here(Kind::ReturnTypeMismatch, sentence))?;
                let one = picture
                    .named(is_mask)
                    .map_err(|sentence| here(Kind::InvalidInputType, sentence))?;
                let id = format!("{place} in memory");
                let class = CLASSES[if is_mask { 2 } else { 1 }].0.to_owned();
                let inputs = vec![named_input(&one)];
                if !graph.push(Node { id: id.clone(), class, meta: None, inputs }) {
                    let sentence = format!("a node has the id \"{id}\" already");
                    return Err(here(Kind::Arguments, sentence));
                }
                let link = Input::Link { id, slot: 0 };
                graph.inputs_mut(at.position()).set(at.input(), link);
                given.push(one);
            }
        }
    }
    Ok(given)
}

fn named_input(given: &Given) -> (String, Input) {
    let value = Json::from(given.name.as_str());
    (INPUT.to_owned(), Input::Literal { value, origin: Origin::CommandLine })
}

/// The number of the class that can stand in the place of the node.
fn stands_for(graph: &Graph, catalogue: &Catalogue, position: usize) -> Result<usize, String> {
    let class = &graph.nodes()[position].class;
    let Some(known) = catalogue.get(class) else {
        return Err("its class is not there, so it is not known whether it gives a picture".into());
    };
    let types: Vec<&str> = known.descriptor.outputs.iter().map(|one| one.kind.as_str()).collect();
    let found = CLASSES.iter().position(|(_, outputs)| *outputs == types.as_slice());
    found.ok_or_else(|| {
        format!(
            "a picture can stand in the place of a node that gives an IMAGE, a MASK, or an IMAGE and a MASK, \
             and this one gives {}; the picture can be given to an input, as NODE.INPUT",
            if types.is_empty() { "nothing".to_owned() } else { types.join(", ") }
        )
    })
}

/// Whether the input takes a mask, and no picture.
fn takes(at: &Place, graph: &Graph, catalogue: &Catalogue, axes: usize) -> Result<bool, String> {
    let Some(input) = at.descriptor(graph, catalogue) else {
        return Err("its class is not there, so it is not known whether it takes a picture".into());
    };
    if let InputKind::Path { .. } = input.kind {
        return Err(
            "it takes a file; give the picture the node's own name, and it stands for what the \
                    node would load"
                .into(),
        );
    }
    let fits = |kind| input.kind == InputKind::Socket && types_fit(kind, &input.type_name);
    match (fits("IMAGE"), fits("MASK")) {
        (true, true) => Ok(axes == 2),
        (true, false) => Ok(false),
        (false, true) => Ok(true),
        (false, false) => Err(format!("it takes {}, and no picture", input.type_name)),
    }
}

impl Picture {
    /// The picture in the shape that a graph has it in, under the hash of its numbers, which are looked at.
    fn named(mut self, is_mask: bool) -> Result<Given, String> {
        let shape = self.shape.clone();
        self.shape = match (is_mask, &*shape) {
            (false, &[h, w]) => vec![1, h, w, 1],
            (false, &[h, w, c @ (1 | 3 | 4)]) => vec![1, h, w, c],
            (false, &[b, h, w, c @ (1 | 3 | 4)]) => vec![b, h, w, c],
            (true, &[h, w] | &[h, w, 1]) => vec![1, h, w],
            (true, &[b, h, w] | &[b, h, w, 1]) => vec![b, h, w],
            (false, _) => {
                return Err(format!(
                    "the picture that is given has the shape {shape:?}, where [H, W, C] or [B, H, W, C] is due, \
                     with 1, 3 or 4 channels, which come last"
                ));
            }
            (true, _) => {
                return Err(format!(
                    "the mask that is given has the shape {shape:?}, where [H, W] or [B, H, W] is due"
                ));
            }
        };
        if self.shape.contains(&0) {
            return Err(format!("what is given has the shape {shape:?}: there is nothing in it"));
        }
        let numbers = self.read()?;
        let wrong = numbers.iter().filter(|x| !x.is_finite()).count();
        if wrong > 0 {
            return Err(format!(
                "{wrong} of the {} numbers that are given are not finite (NaN or infinite)",
                numbers.len()
            ));
        }
        let most = numbers.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        if most > BRIGHTEST {
            return Err(format!(
                "a picture's floats go from 0 to 1, and one of those that are given is {most}; bytes \
                 are given as uint8"
            ));
        }
        let mut hasher = blake3::Hasher::new();
        self.shape.iter().for_each(|length| {
            hasher.update(&length.to_le_bytes());
        });
        numbers.iter().for_each(|x| {
            hasher.update(&x.to_le_bytes());
        });
        Ok(Given { name: hasher.finalize().to_hex()[..32].to_owned(), picture: self })
    }

    /// Its numbers, as f32.
    fn read(&self) -> Result<Vec<f32>, String> {
        let gone = |error: io::Error| {
            format!("the memory of the picture that is given, {}: {error}", self.path.display())
        };
        let count = self.shape.iter().try_fold(1u64, |count, &n| count.checked_mul(n));
        let width = if self.dtype == Element::Uint8 { 1 } else { 4 };
        let wanted = count.and_then(|count| count.checked_mul(width));
        let mut file = File::open(&self.path).map_err(gone)?;
        let there = file.metadata().map_err(gone)?.len().saturating_sub(self.offset);
        let Some(wanted) = wanted.filter(|&wanted| wanted <= there) else {
            return Err(format!(
                "the picture that is given says that it has the shape {:?}, and brings {there} bytes",
                self.shape
            ));
        };
        file.seek(SeekFrom::Start(self.offset)).map_err(gone)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(usize::try_from(wanted).unwrap_or(usize::MAX)).map_err(
            |error| format!("there is no memory for the picture that is given: {error}"),
        )?;
        file.take(wanted).read_to_end(&mut bytes).map_err(gone)?;
        Ok(match self.dtype {
            Element::Uint8 => bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect(),
            Element::Float32 => bytes
                .chunks_exact(4)
                .map(|four| f32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
                .collect(),
        })
    }
}

impl Memory {
    /// What class number `node` gives: the picture that its input names.
    ///
    /// # Errors
    /// It was not given, or is gone.
    pub fn run(&self, node: usize, inputs: &[Value]) -> Result<Vec<Value>, NodeFailure> {
        let failed = |sentence: String| NodeFailure::failed(sentence);
        let name = inputs.first().and_then(Value::as_str).unwrap_or_default();
        let Some(given) = self.given.iter().find(|given| given.name == name) else {
            return Err(failed("it stands for a picture in memory, which was not given".into()));
        };
        let numbers = given.picture.read().map_err(failed)?;
        let tensor = |shape: &[i64], numbers: &[f32]| {
            Value::tensor_f32(shape, numbers)
                .ok_or_else(|| failed("there is no memory for it".into()))
        };
        let shape: Vec<i64> = given.picture.shape.iter().map(|&n| n as i64).collect();
        let &[b, h, w, c] = &*shape else { return Ok(vec![tensor(&shape, &numbers)?]) };
        // As LoadImage: with a mask beside it, and of grey, a picture is RGB.
        let has_mask = node == 0;
        let image = match (c, has_mask) {
            (1, _) => {
                let rgb: Vec<f32> = numbers.iter().flat_map(|&grey| [grey; 3]).collect();
                tensor(&[b, h, w, 3], &rgb)?
            }
            (4, true) => {
                let rgb: Vec<f32> =
                    numbers.chunks_exact(4).flat_map(|pixel| &pixel[..3]).copied().collect();
                tensor(&[b, h, w, 3], &rgb)?
            }
            _ => tensor(&shape, &numbers)?,
        };
        if !has_mask {
            return Ok(vec![image]);
        }
        let mask = match c {
            4 => {
                let mask: Vec<f32> = numbers.chunks_exact(4).map(|pixel| 1.0 - pixel[3]).collect();
                tensor(&[b, h, w], &mask)?
            }
            _ => tensor(&[b, 64, 64], &vec![0.0; b as usize * 64 * 64])?,
        };
        Ok(vec![image, mask])
    }

    /// Appends the picture to the file for whoever gave the job; `None` where there is no file, or `value` is no picture.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn hand_over(&self, input: &str, value: &Value) -> Result<Option<Handed>, String> {
        let (Some(path), Some(view)) = (&self.out, value.as_tensor()) else { return Ok(None) };
        let numbers = view.as_f32().map_err(|error| error.to_string())?;
        let write = || -> io::Result<u64> {
            let mut file = OpenOptions::new().write(true).open(path)?;
            let offset = file.seek(SeekFrom::End(0))?.next_multiple_of(PAGE);
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            for part in numbers.chunks(1 << 16) {
                bytes.clear();
                bytes.extend(part.iter().flat_map(|x| x.to_ne_bytes()));
                file.write_all(&bytes)?;
            }
            Ok(offset)
        };
        let offset = write().map_err(|error| error.to_string())?;
        Ok(Some(Handed { input: input.to_owned(), offset, shape: view.shape().to_vec() }))
    }
}

#[cfg(test)]
mod tests;
