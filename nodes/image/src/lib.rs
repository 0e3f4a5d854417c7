//! Node library: pictures from files and to files, scaled, joined, and prepared for ControlNets.
//!
//! Each function works on plain slices of f32 [B, H, W, C] or of 8-bit levels and stands in its own module; `nodes` gives them the
//! inputs and names that ComfyUI's workflows use. No tensor library is linked.

pub mod batch;
pub mod canny;
pub mod decode;
pub mod encode;
pub mod interpolate;
pub mod jpeg;
pub mod lanczos;
pub mod levels;
pub mod nodes;
pub mod outpaint;
pub mod output_file;
pub mod scale;
pub mod shape;

use nodes::canny::Canny;
use nodes::image_batch::ImageBatch;
use nodes::image_invert::ImageInvert;
use nodes::image_pad_for_outpaint::ImagePadForOutpaint;
use nodes::image_scale::ImageScale;
use nodes::image_scale_by::ImageScaleBy;
use nodes::load_image::LoadImage;
use nodes::preview_image::PreviewImage;
use nodes::save_image::SaveImage;

node::library![
    LoadImage,
    SaveImage,
    PreviewImage,
    ImageScale,
    ImageScaleBy,
    ImageInvert,
    ImageBatch,
    ImagePadForOutpaint,
    Canny,
];
