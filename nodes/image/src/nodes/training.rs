//! What is kept of a training in a graph: SaveLoRANode writes its LoRA, LossGraphNode draws how it went.

use std::path::Path;

use kosmograph_contact_sheet::{Cell, Picture, Sheet};
use node::memory::ask;
use node::{Context, Error, Inputs, Node, Replaces, Result, Socket, Value, json, outputs};

use super::image;
use super::save_image::{Destination, save_pictures};
use kosmograph_output_files::{OutputError, Patterns, Series};
use kosmograph_pixels::Shape;

/// A LoRA in memory: a map of "layers", as "lora/2" takes them.
pub struct LoraModel(Value);

impl Socket for LoraModel {
    const TYPE: &'static str = "LORA_MODEL";

    fn from_value(value: Value) -> Result<Self> {
        match value.get("layers").and_then(|layers| layers.as_map()) {
            Some(_) => Ok(Self(value)),
            None => Err(Error::new(format!(
                "LORA_MODEL (a map with the map \"layers\") is wanted, but {} was given",
                value.kind_name()
            ))),
        }
    }

    fn into_value(self) -> Value {
        self.0
    }
}

/// The losses of a training: a map of "loss", a list of numbers.
pub struct LossMap(Vec<f64>);

impl Socket for LossMap {
    const TYPE: &'static str = "LOSS_MAP";

    fn from_value(value: Value) -> Result<Self> {
        let losses = value.get("loss").and_then(|losses| losses.as_list());
        let losses = losses.map(|losses| losses.iter().map(Value::as_f64).collect::<Option<_>>());
        match losses.flatten() {
            Some(losses) => Ok(Self(losses)),
            None => Err(Error::new(format!(
                "LOSS_MAP (a map with the list of numbers \"loss\") is wanted, but {} was given",
                value.kind_name()
            ))),
        }
    }

    fn into_value(self) -> Value {
        let losses = self.0.into_iter().map(Value::from).collect();
        Value::map([("loss", Value::list(losses))])
    }
}

/// Saves a LoRA that was trained in the graph as a safetensors file in the output folder, under kohya's names: PREFIX_16_steps_00001_.safetensors.
#[derive(Inputs)]
#[node(category = "loaders", output_node, writes = "output")]
pub struct SaveLoRANode {
    /// The LoRA.
    pub lora: LoraModel,
    /// How the file begins; may name sub-folders.
    #[widget(default = "loras/ComfyUI_trained_lora", prefix)]
    pub prefix: String,
    /// How many steps it was trained for, for its name.
    #[widget(default = 0, min = 0, max = 9_007_199_254_740_991i64)]
    pub steps: Option<i64>,
}

impl Node for SaveLoRANode {
    outputs![];

    const REPLACES: &'static [Replaces] = &[Replaces::named("SaveLoRA")];

    fn run(self, cx: &Context) -> Result<()> {
        let tensors = tensors(&self.lora).map_err(|error| error.of_input("lora"))?;
        let root = cx.property("output_directory").ok_or_else(|| {
            Error::new("the host does not say where files go (\"output_directory\")")
        })?;
        let patterns = Patterns { width: 0, height: 0, now: kosmograph_output_files::now() };
        let mut prefix = patterns.apply(&self.prefix);
        if let Some(steps) = self.steps.filter(|steps| *steps > 0) {
            prefix = format!("{prefix}_{steps}_steps");
        }
        let series = Series::begin(Path::new(&root), &prefix, 1).map_err(|error| match error {
            OutputError::Outside { .. } => Error::at("prefix", error),
            other => other.into(),
        })?;
        let mut series = series.ending("safetensors");
        let subfolder = series.subfolder().to_owned();
        let item = |filename: &str| json!({"filename": filename, "subfolder": subfolder, "type": "output"});
        let filename = series.save(
            0,
            |temporary| cx.output(&json!({"making": item(temporary)})),
            |file| write(file, &tensors),
        )?;
        cx.output(&json!({"loras": [item(&filename)]}));
        Ok(())
    }
}

/// A tensor of the file.
struct Named {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// The tensors of the file, by their names.
fn tensors(lora: &LoraModel) -> Result<Vec<Named>> {
    let layers = lora.0.get("layers").and_then(|layers| layers.as_map()).unwrap_or_default();
    let mut tensors = Vec::new();
    for (module, layer) in layers {
        let module = format!("lora_unet_{}", module.replace('.', "_"));
        let factors = layer.get("factors").and_then(|factors| factors.as_map()).unwrap_or_default();
        for (factor, tensor) in factors {
            let tensor = tensor.as_tensor().ok_or_else(|| {
                Error::new(format!("the factor \"{factor}\" of {module} is no tensor"))
            })?;
            let end = match factor.as_str() {
                "up" => "lora_up.weight",
                "down" => "lora_down.weight",
                "mid" => "lora_mid.weight",
                other => other,
            };
            ask("the numbers of a LoRA", &tensor.shape(), size_of::<f32>())?;
            let (shape, values) = (tensor.shape(), tensor.to_vec()?);
            tensors.push(Named { name: format!("{module}.{end}"), shape, values });
        }
        if let Some(alpha) = layer.get("alpha").and_then(|alpha| alpha.as_f64()) {
            let (shape, values) = (Vec::new(), vec![alpha as f32]);
            tensors.push(Named { name: format!("{module}.alpha"), shape, values });
        }
    }
    if tensors.is_empty() {
        return Err(Error::new("the LoRA has no layers"));
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// A safetensors file. Tensors whose numbers all are bf16's take two bytes for each.
fn write(file: &mut dyn std::io::Write, tensors: &[Named]) -> std::io::Result<()> {
    let is_half = |tensor: &Named| tensor.values.iter().all(|value| value.to_bits() & 0xffff == 0);
    let mut header = serde_json::Map::new();
    header.insert(
        "__metadata__".to_owned(),
        json!({"format": "pt", "ss_network_module": "networks.lora"}),
    );
    let mut end = 0;
    for tensor in tensors {
        let (dtype, bytes) = if is_half(tensor) { ("BF16", 2) } else { ("F32", 4) };
        let start = end;
        end += tensor.values.len() * bytes;
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        let is_half = is_half(tensor);
        for value in &tensor.values {
            let bytes = value.to_le_bytes();
            file.write_all(if is_half { &bytes[2..] } else { &bytes })?;
        }
    }
    Ok(())
}

/// Draws the losses of a training, one after the other, as a picture in the folder for temporary files.
#[derive(Inputs)]
#[node(category = "training", output_node, writes = "temp")]
pub struct LossGraphNode {
    /// The losses.
    pub loss: LossMap,
    /// How the file begins.
    #[widget(default = "loss_graph", prefix)]
    pub filename_prefix: String,
}

impl Node for LossGraphNode {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let losses = self.loss.0;
        if losses.is_empty() || losses.iter().any(|loss| !loss.is_finite()) {
            return Err(Error::at("loss", "losses are one or more numbers that are not infinite"));
        }
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let most = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let picture = curve(&losses, (least, most));
        let cell = Cell {
            picture: Some(picture),
            label: format!(
                "steps 1 to {}; the last loss is {:.4}",
                losses.len(),
                losses[losses.len() - 1]
            ),
        };
        let sheet = Sheet {
            title: format!("Loss: {least:.4} to {most:.4}"),
            columns: vec![String::new()],
            rows: vec![String::new()],
            cells: vec![cell],
        };
        let drawn = sheet.draw().map_err(Error::new)?;
        let values = drawn.pixels.iter().map(|level| f32::from(*level) / 255.0).collect();
        let shape = Shape { batch: 1, height: drawn.height, width: drawn.width, channels: 3 };
        let to = Destination { property: "temp_directory", kind: "temp", compression: 4 };
        save_pictures(cx, &image(shape, values)?, &self.filename_prefix, &to)
    }
}

const WIDTH: usize = 800;
const HEIGHT: usize = 480;

/// The losses from left to right, the most at the top, in blue on white.
fn curve(losses: &[f64], (least, most): (f64, f64)) -> Picture {
    let mut pixels = vec![255u8; WIDTH * HEIGHT * 3];
    let spread = (most - least).max(f64::MIN_POSITIVE);
    let place = |i: usize| {
        let share = i as f64 / (losses.len().max(2) - 1) as f64;
        let height = (losses[i] - least) / spread;
        (share * (WIDTH - 1) as f64, (1.0 - height) * (HEIGHT - 1) as f64)
    };
    let mut dot = |x: f64, y: f64| {
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let (x, y) = (x.round() as usize + dx, y.round() as usize + dy);
            if x < WIDTH && y < HEIGHT {
                pixels[(y * WIDTH + x) * 3..][..3].copy_from_slice(&[0, 0, 255]);
            }
        }
    };
    let (x, y) = place(0);
    dot(x, y);
    for i in 1..losses.len() {
        let ((x0, y0), (x1, y1)) = (place(i - 1), place(i));
        let steps = (x1 - x0).abs().max((y1 - y0).abs()).ceil().max(1.0);
        for step in 0..=steps as usize {
            let share = step as f64 / steps;
            dot(x0 + share * (x1 - x0), y0 + share * (y1 - y0));
        }
    }
    Picture { width: WIDTH, height: HEIGHT, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_falls_from_the_upper_left_to_the_lower_right() {
        let picture = curve(&[3.0, 2.0, 1.0], (1.0, 3.0));
        let at = |x: usize, y: usize| picture.pixels[(y * WIDTH + x) * 3];
        assert_eq!([at(0, 0), at(WIDTH - 1, HEIGHT - 1), at(WIDTH - 1, 0)], [0, 0, 255]);
        // One loss, and losses that are all the same, are drawn too.
        assert_eq!(curve(&[2.0], (2.0, 2.0)).pixels.len(), WIDTH * HEIGHT * 3);
        assert_eq!(curve(&[2.0; 5], (2.0, 2.0)).pixels[(HEIGHT - 1) * WIDTH * 3], 0);
    }
}
