//! Node library: pictures from files and to files, scaled, joined, and prepared for ControlNets.
//!
//! Each function works on plain slices of f32 [B, H, W, C] or of 8-bit levels and stands in its own module (sizes are changed by
//! `kosmograph_pixels`); `nodes` gives them the inputs and names that ComfyUI's workflows use. No tensor library is linked.

pub mod batch;
pub mod blur;
pub mod canny;
pub mod decode;
pub mod encode;
pub mod hint;
pub mod jpeg;
pub mod levels;
pub mod mask;
pub mod nodes;
pub mod opencv_resize;
pub mod outpaint;
pub mod output_file;
pub mod scale;

use nodes::canny::Canny;
use nodes::hint_preprocessors::{
    BinaryPreprocessor, CannyEdgePreprocessor, ScribblePreprocessor, ScribbleXDoGPreprocessor,
    TilePreprocessor,
};
use nodes::image_batch::ImageBatch;
use nodes::image_filter::{ImageBlur, ImageSharpen};
use nodes::image_invert::ImageInvert;
use nodes::image_pad_for_outpaint::ImagePadForOutpaint;
use nodes::image_scale::ImageScale;
use nodes::image_scale_by::ImageScaleBy;
use nodes::image_size::{EmptyImage, ImageCrop, ImageScaleToTotalPixels};
use nodes::load_image::LoadImage;
use nodes::mask_convert::{
    ImageToMask, InvertMask, LoadImageMask, MaskToImage, SolidMask, ThresholdMask,
};
use nodes::mask_edit::{CropMask, FeatherMask, GrowMask, MaskComposite};
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
    EmptyImage,
    ImageCrop,
    ImageScaleToTotalPixels,
    ImageBlur,
    ImageSharpen,
    Canny,
    CannyEdgePreprocessor,
    BinaryPreprocessor,
    ScribblePreprocessor,
    ScribbleXDoGPreprocessor,
    TilePreprocessor,
    LoadImageMask,
    MaskToImage,
    ImageToMask,
    InvertMask,
    ThresholdMask,
    SolidMask,
    GrowMask,
    FeatherMask,
    CropMask,
    MaskComposite;
    prepare: kosmograph_threads::start
];
