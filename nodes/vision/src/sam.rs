//! Segment Anything (Kirillov et al., arXiv 2304.02643), of candle-transformers' parts: a picture is encoded once, and points or a box
//! then ask it for masks. Names are those of the authors' files (`sam_vit_b_01ec64.pth`); those of transformers' lead to them.

use candle_core::{Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::segment_anything::image_encoder::ImageEncoderViT;
use candle_transformers::models::segment_anything::prompt_encoder::PromptEncoder;
use kosmograph_models::{Error, Result, Weights};

use crate::mask_decoder::MaskDecoder;
use crate::weights::{build, build_named, count, heads, not_this, renamed, sizes};

/// What stands in the shapes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    dim: usize,
    patch: usize,
    /// Patches along a side.
    grid: usize,
    depth: usize,
    heads: usize,
    /// Of what the encoder gives, and of the prompts.
    channels: usize,
    /// Patches along a side of what a block looks at, but for those that look at all.
    window: usize,
}

/// What is asked for, in pixels of the encoder's picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// x, y, and whether it belongs to what is cut out.
    pub points: Vec<(f32, f32, bool)>,
    /// The upper left and the lower right corner.
    pub corners: Option<[f32; 4]>,
}

/// The network.
pub struct Sam {
    encoder: ImageEncoderViT,
    prompts: PromptEncoder,
    /// The same with the embeddings of a box's corners in the places of those of points: candle-transformers lays the two
    /// corners of a box behind each other in one token, where the network has a token for each.
    corners: PromptEncoder,
    decoder: MaskDecoder,
    config: Config,
}

const ENCODER: &str = "image_encoder";
const PROMPTS: &str = "prompt_encoder";

impl Sam {
    /// Weights that [`by_authors_names`] gave; every size is in the shapes.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights) -> Result<Sam> {
        let config = Config::of(&weights.sub(ENCODER))?;
        let Config { dim, patch, grid, depth, heads, channels, window } = config;
        let size = grid * patch;
        let everywhere: Vec<usize> = (0..depth)
            .filter(|i| window_of(&weights.sub(ENCODER), *i).ok() == Some(grid))
            .collect();
        let encoder = build(&weights.sub(ENCODER), |names| {
            ImageEncoderViT::new(
                size,
                patch,
                3,
                dim,
                depth,
                heads,
                channels,
                true,
                true,
                true,
                window,
                &everywhere,
                names,
            )
        })?;
        let prompts = weights.sub(PROMPTS);
        let [mask_channels, ..] = sizes::<4>(&prompts, "mask_downscaling.3.weight")?;
        let new = |names: VarBuilder| {
            PromptEncoder::new(channels, (grid, grid), (size, size), mask_channels, names)
        };
        Ok(Sam {
            encoder,
            prompts: build(&prompts, new)?,
            corners: build_named(&prompts, of_corner, new)?,
            decoder: MaskDecoder::load(&weights.sub("mask_decoder"), channels)?,
            config,
        })
    }

    /// The side of the picture that the encoder takes, in pixels.
    pub fn size(&self) -> usize {
        self.config.grid * self.config.patch
    }

    /// What the attention of one block takes in bytes, of those that look at the whole picture: scores, positions added, softmax.
    pub fn working_bytes(&self) -> u128 {
        let tokens = (self.config.grid * self.config.grid) as u128;
        3 * 4 * self.config.heads as u128 * tokens * tokens
    }

    /// Normalised pixels [1, 3, S, S], S = [`Sam::size`], to what prompts ask, [1, C, grid, grid].
    ///
    /// # Errors
    /// The pixels are of another size.
    pub fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        let size = self.size();
        if pixels.dims() != [1, 3, size, size] {
            return Err(Error::Input(format!(
                "Segment Anything takes pixels of {:?}, not {:?}",
                [1, 3, size, size],
                pixels.dims()
            )));
        }
        Ok(self.encoder.forward(pixels)?)
    }

    /// What `prompt` asks of an encoded picture: masks [N, 4 · grid, 4 · grid], above 0 where something belongs to them, and how good each is
    /// thought to be, N of 1. Where there is not `one` there are three: the whole, a part, and a part of that.
    ///
    /// # Errors
    /// Nothing is asked for.
    pub fn masks(
        &self,
        encoded: &Tensor,
        prompt: &Prompt,
        one: bool,
    ) -> Result<(Tensor, Vec<f32>)> {
        if prompt.points.is_empty() && prompt.corners.is_none() {
            return Err(Error::Input("there is neither a point nor a box to cut out".to_owned()));
        }
        let device = encoded.device();
        let embed =
            |encoder: &PromptEncoder, points: &[(f32, f32, bool)]| -> Result<(Tensor, Tensor)> {
                let at: Vec<f32> = points.iter().flat_map(|(x, y, _)| [*x, *y]).collect();
                let labels: Vec<f32> =
                    points.iter().map(|point| f32::from(u8::from(point.2))).collect();
                let at = Tensor::from_vec(at, (1, points.len(), 2), device)?;
                let labels = Tensor::from_vec(labels, (1, points.len()), device)?;
                // A token that is no point comes last.
                Ok(encoder.forward(Some((&at, &labels)), None, None)?)
            };
        let (sparse, dense) = match prompt.corners {
            None => embed(&self.prompts, &prompt.points)?,
            Some([left, top, right, bottom]) => {
                let corners = [(left, top, false), (right, bottom, true)];
                let (corners, dense) = embed(&self.corners, &corners)?;
                let corners = corners.narrow(1, 0, 2)?;
                let sparse = match prompt.points.len() {
                    0 => corners,
                    count => {
                        let (points, _) = embed(&self.prompts, &prompt.points)?;
                        Tensor::cat(&[&points.narrow(1, 0, count)?, &corners], 1)?
                    }
                };
                (sparse, dense)
            }
        };
        let positions = self.prompts.get_dense_pe()?;
        let (masks, quality) = self.decoder.forward(encoded, &positions, &sparse, &dense)?;
        // The first is the one that stands for all three.
        let (from, count) = if one { (0, 1) } else { (1, quality.len().saturating_sub(1)) };
        Ok((masks.narrow(0, from, count)?, quality[from..from + count].to_vec()))
    }
}

/// The name of a corner's embedding where that of a point is asked for.
fn of_corner(name: &str) -> String {
    match name {
        "point_embeddings.0.weight" => "point_embeddings.2.weight".to_owned(),
        "point_embeddings.1.weight" => "point_embeddings.3.weight".to_owned(),
        _ => name.to_owned(),
    }
}

/// How many patches block `i` looks at along a side: each has a number for every distance of two, in both directions.
fn window_of(encoder: &Weights, i: usize) -> Result<usize> {
    let [down, _] = sizes(encoder, &format!("blocks.{i}.attn.rel_pos_h"))?;
    let [across, _] = sizes(encoder, &format!("blocks.{i}.attn.rel_pos_w"))?;
    if down != across || down % 2 == 0 {
        return Err(Error::Input(format!(
            "{} is no Segment Anything: block {i} has {down} and {across} relative positions, where an odd number, the same of \
             both, would be right",
            encoder.origin()
        )));
    }
    Ok(down.div_ceil(2))
}

impl Config {
    fn of(encoder: &Weights) -> Result<Config> {
        let [dim, colours, patch, wide] = sizes(encoder, "patch_embed.proj.weight")?;
        let [_, grid, across, _] = sizes(encoder, "pos_embed")?;
        let [channels, ..] = sizes::<4>(encoder, "neck.0.weight")?;
        let depth = count(encoder, |i| format!("blocks.{i}.norm1.weight"));
        if colours != 3 || patch != wide || grid != across || depth == 0 {
            return Err(Error::Input(format!(
                "{} is no Segment Anything: it has {depth} blocks, {grid} × {across} patches of {patch} × {wide} pixels with \
                 {colours} colours; squares of three would be right",
                encoder.origin()
            )));
        }
        let [_, head] = sizes(encoder, "blocks.0.attn.rel_pos_h")?;
        let mut window = grid;
        for i in 0..depth {
            let of_block = window_of(encoder, i)?;
            if of_block == grid {
                continue;
            }
            if window != grid && of_block != window {
                return Err(Error::Input(format!(
                    "{} is no Segment Anything: its blocks look at {window} and at {of_block} patches; one number beside that of \
                     all would be right",
                    encoder.origin()
                )));
            }
            window = of_block;
        }
        Ok(Config { dim, patch, grid, depth, heads: heads(encoder, dim, head)?, channels, window })
    }
}

/// What transformers' files carry twice.
pub const TOLERATED: &str = "prompt_encoder.shared_embedding.positional_embedding";

/// The weights under the authors' names, whichever of the two they have.
///
/// # Errors
/// They are of neither kind.
pub fn by_authors_names(weights: &Weights) -> Result<Weights> {
    if weights.has("vision_encoder.layers") && weights.has("mask_decoder") {
        return Ok(renamed(weights, authors_name));
    }
    if weights.has("image_encoder.blocks") && weights.has("mask_decoder") {
        return Ok(weights.clone());
    }
    if weights.has("image_encoder.layers") && weights.has("mask_decoder") {
        return Err(Error::NotThisKind {
            path: weights.origin().into(),
            what:
                "it is a MobileSAM, which is not read; sam_vit_b_01ec64.pth and its larger ones are"
                    .to_owned(),
        });
    }
    Err(not_this(
        weights,
        "Segment Anything (sam_vit_b_01ec64.pth, model.safetensors of facebook/sam-vit-base)",
    ))
}

/// What the authors call a tensor of transformers' file.
fn authors_name(name: &str) -> String {
    /// Beginnings, and what they become.
    const BEGINNINGS: [(&str, &str); 18] = [
        ("vision_encoder.pos_embed", "image_encoder.pos_embed"),
        ("vision_encoder.patch_embed.projection.", "image_encoder.patch_embed.proj."),
        ("vision_encoder.layers.", "image_encoder.blocks."),
        ("vision_encoder.neck.conv1.", "image_encoder.neck.0."),
        ("vision_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
        ("vision_encoder.neck.conv2.", "image_encoder.neck.2."),
        ("vision_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
        (
            "shared_image_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        ("prompt_encoder.point_embed.", "prompt_encoder.point_embeddings."),
        ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
        ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
        ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
        ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
        ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
        ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
        ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
        ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
        (
            "mask_decoder.transformer.layer_norm_final_attn.",
            "mask_decoder.transformer.norm_final_attn.",
        ),
    ];
    for (old, new) in BEGINNINGS {
        if let Some(rest) = name.strip_prefix(old) {
            return format!("{new}{}", rest.replacen("layer_norm", "norm", 1));
        }
    }
    if name.starts_with("mask_decoder.transformer.layers.") {
        return name.replacen(".layer_norm", ".norm", 1);
    }
    let is_head = name.starts_with("mask_decoder.output_hypernetworks_mlps.")
        || name.starts_with("mask_decoder.iou_prediction_head.");
    if is_head {
        // Three layers: the first and the last have names, and the numbers count what is between.
        return name
            .replacen(".layers.0.", ".layers.1.", 1)
            .replacen(".proj_in.", ".layers.0.", 1)
            .replacen(".proj_out.", ".layers.2.", 1);
    }
    name.to_owned()
}
