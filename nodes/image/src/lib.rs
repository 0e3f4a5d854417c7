//! Node library: pictures from files and to files, scaled, joined, and prepared for ControlNets.
//!
//! Each function works on plain slices of f32 [B, H, W, C] or of 8-bit levels and stands in its own module (sizes are changed by
//! `kosmograph_pixels`); `nodes` gives them the inputs and names that ComfyUI's workflows use. No tensor library is linked.

pub mod batch;
pub mod blur;
pub mod canny;
pub mod composite;
pub mod decode;
pub mod encode;
pub mod hint;
pub mod jpeg;
pub mod levels;
pub mod mask;
pub mod morphology;
pub mod nodes;
pub mod outpaint;
pub mod python_text;
pub mod quantize;
pub mod regex;
pub mod scale;
pub mod webp;

use nodes::aio_preprocessor::AioPreprocessor;
use nodes::canny::Canny;
use nodes::hint_preprocessors::{
    BinaryPreprocessor, CannyEdgePreprocessor, ScribblePreprocessor, ScribbleXDoGPreprocessor,
    TilePreprocessor,
};
use nodes::image_alpha::{JoinImageWithAlpha, PorterDuffImageComposite, SplitImageWithAlpha};
use nodes::image_batch::ImageBatch;
use nodes::image_batches::{ImageFlip, ImageFromBatch, ImageRotate, RepeatImageBatch};
use nodes::image_colour::{ImageColorToMask, ImageRGBToYUV, ImageYUVToRGB, Morphology};
use nodes::image_composite::{ImageBlend, ImageCompositeMasked, LatentCompositeMasked};
use nodes::image_filter::{ImageBlur, ImageSharpen};
use nodes::image_fit::{ImageScaleToMaxDimension, ImageStitch, ResizeAndPadImage};
use nodes::image_grid::ImageGrid;
use nodes::image_invert::ImageInvert;
use nodes::image_measure::{
    GetImageSize, GetImageSizePlus, ImageGenResolutionFromImage, PixelPerfectResolution,
};
use nodes::image_packs::{
    ConstantNumber, EasyLoadImageBase64, EtnLoadImageBase64, EzLoadImgFromUrl, ImageComparer,
    ImpactDilateMask,
};
use nodes::image_pad_for_outpaint::ImagePadForOutpaint;
use nodes::image_quantize::ImageQuantize;
use nodes::image_resize_packs::{ImageResizePlus, ImageResizeWas, JWImageResizeByLongerSide};
use nodes::image_scale::ImageScale;
use nodes::image_scale_by::ImageScaleBy;
use nodes::image_size::{EmptyImage, ImageCrop, ImageScaleToTotalPixels};
use nodes::load_image::{LoadImage, LoadImageOutput};
use nodes::loss_graph::LossGraphNode;
use nodes::mask_convert::{
    ImageToMask, InvertMask, LoadImageMask, MaskToImage, SolidMask, ThresholdMask,
};
use nodes::mask_edit::{CropMask, FeatherMask, GrowMask, MaskComposite};
use nodes::mask_preview::{MaskPreview, MaskPreviewPlus};
use nodes::preview_image::PreviewImage;
use nodes::primitive::{
    PreviewAny, PrimitiveBoolean, PrimitiveFloat, PrimitiveInt, PrimitiveString,
    PrimitiveStringMultiline,
};
use nodes::prompt_styles::SDXLPromptStyler;
use nodes::rebatch_images::RebatchImages;
use nodes::save_animated::{SaveAnimatedPNG, SaveAnimatedWEBP};
use nodes::save_image::SaveImage;
use nodes::save_image_websocket::SaveImageWebsocket;
use nodes::text::{
    CaseConverter, RegexExtract, RegexMatch, RegexReplace, StringCompare, StringConcatenate,
    StringContains, StringLength, StringReplace, StringSubstring, StringTrim,
};
use nodes::text_packs::{
    CrFloatToString, CrIntegerToString, CrPromptText, LoadImageFromUrl, ShowText, StringLiteral,
    TextMultiline,
};

node::library![
    SDXLPromptStyler,
    LoadImage,
    SaveImage,
    LossGraphNode,
    PreviewImage,
    SaveImageWebsocket,
    RebatchImages,
    ImageQuantize,
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
    MaskComposite,
    MaskPreview,
    ImageColorToMask,
    ImageCompositeMasked,
    LatentCompositeMasked,
    ImageBlend,
    JoinImageWithAlpha,
    SplitImageWithAlpha,
    PorterDuffImageComposite,
    ImageFromBatch,
    RepeatImageBatch,
    ImageFlip,
    ImageRotate,
    ImageStitch,
    ImageGrid,
    ResizeAndPadImage,
    ImageScaleToMaxDimension,
    GetImageSize,
    ImageRGBToYUV,
    ImageYUVToRGB,
    Morphology,
    LoadImageOutput,
    SaveAnimatedPNG,
    SaveAnimatedWEBP,
    StringConcatenate,
    StringSubstring,
    StringLength,
    CaseConverter,
    StringTrim,
    StringReplace,
    StringContains,
    StringCompare,
    RegexMatch,
    RegexExtract,
    RegexReplace,
    PrimitiveString,
    PrimitiveStringMultiline,
    PrimitiveInt,
    PrimitiveFloat,
    PrimitiveBoolean,
    PreviewAny,
    // By the names of packs.
    AioPreprocessor,
    PixelPerfectResolution,
    ImageGenResolutionFromImage,
    MaskPreviewPlus,
    GetImageSizePlus,
    ImageResizePlus,
    ImageResizeWas,
    JWImageResizeByLongerSide,
    ShowText,
    TextMultiline,
    StringLiteral,
    CrPromptText,
    CrIntegerToString,
    CrFloatToString,
    LoadImageFromUrl,
    EzLoadImgFromUrl,
    EtnLoadImageBase64,
    EasyLoadImageBase64,
    ImageComparer,
    ImpactDilateMask,
    ConstantNumber;
    prepare: kosmograph_threads::start
];
