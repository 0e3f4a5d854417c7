//! AIO_Preprocessor: one node for those preprocessors that are here.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::MAX_RESOLUTION;
use super::hint_preprocessors::{
    BinaryPreprocessor, CannyEdgePreprocessor, ScribblePreprocessor, ScribbleXDoGPreprocessor,
    TilePreprocessor,
};

/// "none", and the classes of this library; each is run with its defaults.
const PREPROCESSORS: [&str; 6] = [
    "none",
    "CannyEdgePreprocessor",
    "BinaryPreprocessor",
    "ScribblePreprocessor",
    "Scribble_XDoG_Preprocessor",
    "TilePreprocessor",
];

/// Makes a hint with a preprocessor that is named, all else as that one has it by default.
#[derive(Inputs)]
#[node(class = "AIO_Preprocessor", category = "image/preprocessors")]
pub struct AioPreprocessor {
    pub image: Image,
    /// The class of the preprocessor; none leaves the picture as it is.
    #[widget(default = "none", choices = PREPROCESSORS)]
    pub preprocessor: Option<String>,
    /// The shorter side of the hint, in pixels.
    #[widget(default = 512, min = 64, max = MAX_RESOLUTION, step = 64)]
    pub resolution: Option<u64>,
}

impl Node for AioPreprocessor {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let (image, scale_to) = (self.image, None);
        let resolution = self.resolution.unwrap_or(512);
        match self.preprocessor.as_deref().unwrap_or(PREPROCESSORS[0]) {
            "CannyEdgePreprocessor" => {
                let (low_threshold, high_threshold) = (100, 200);
                let node = CannyEdgePreprocessor {
                    image,
                    low_threshold,
                    high_threshold,
                    resolution,
                    scale_to,
                };
                node.run(cx)
            }
            "BinaryPreprocessor" => {
                BinaryPreprocessor { image, bin_threshold: 100, resolution, scale_to }.run(cx)
            }
            "ScribblePreprocessor" => ScribblePreprocessor { image, resolution, scale_to }.run(cx),
            "Scribble_XDoG_Preprocessor" => {
                ScribbleXDoGPreprocessor { image, threshold: 32, resolution, scale_to }.run(cx)
            }
            "TilePreprocessor" => TilePreprocessor { image, pyrUp_iters: 3, resolution }.run(cx),
            _ => Ok(image),
        }
    }
}
