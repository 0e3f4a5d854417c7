//! Text to conditioning for SDXL: a text for each of its encoders, and the sizes that its U-Nets are told.

use node::*;

/// Encodes a text for each of SDXL's two encoders, with the sizes that the U-Net is told: what the picture stands for.
#[derive(Inputs)]
#[node(category = "advanced/conditioning")]
pub struct CLIPTextEncodeSDXL {
    /// The text encoders.
    clip: Clip,
    /// Width of the original that the picture stands for.
    #[widget(default = 1024, min = 0, max = 16384)]
    width: i64,
    /// Its height.
    #[widget(default = 1024, min = 0, max = 16384)]
    height: i64,
    /// How much of the original was cut off at the left.
    #[widget(default = 0, min = 0, max = 16384)]
    crop_w: i64,
    /// How much was cut off at the top.
    #[widget(default = 0, min = 0, max = 16384)]
    crop_h: i64,
    /// Width of what was left.
    #[widget(default = 1024, min = 0, max = 16384)]
    target_width: i64,
    /// Its height.
    #[widget(default = 1024, min = 0, max = 16384)]
    target_height: i64,
    /// What the picture should show, for the larger encoder, G.
    #[widget(multiline, default = "", mentions = "embeddings")]
    text_g: String,
    /// What the picture should show, for the smaller encoder, L.
    #[widget(multiline, default = "", mentions = "embeddings")]
    text_l: String,
}

impl Node for CLIPTextEncodeSDXL {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let texts = [("l", self.text_l.as_str()), ("g", self.text_g.as_str())];
        let (context, pooled) = self.clip.0.encode_texts(cx, &texts)?;
        let sizes = [
            ("width", self.width),
            ("height", self.height),
            ("crop_w", self.crop_w),
            ("crop_h", self.crop_h),
            ("target_width", self.target_width),
            ("target_height", self.target_height),
        ];
        let with_sizes = |entry: Value| {
            sizes.iter().fold(entry, |entry, (key, size)| entry.with(key, (*size).into()))
        };
        Ok(Conditioning::new(context, pooled).map_entries(with_sizes))
    }
}

/// Encodes a text for SDXL's refiner, with how well a picture should please.
#[derive(Inputs)]
#[node(category = "advanced/conditioning")]
pub struct CLIPTextEncodeSDXLRefiner {
    /// The aesthetic score: 6 for what is wanted, 2.5 for what is not.
    #[widget(default = 6.0, min = 0.0, max = 1000.0, step = 0.01)]
    ascore: f64,
    /// Width of the original that the picture stands for.
    #[widget(default = 1024, min = 0, max = 16384)]
    width: i64,
    /// Its height.
    #[widget(default = 1024, min = 0, max = 16384)]
    height: i64,
    /// What the picture should show.
    #[widget(multiline, default = "", mentions = "embeddings")]
    text: String,
    /// The refiner's text encoder.
    clip: Clip,
}

impl Node for CLIPTextEncodeSDXLRefiner {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let (context, pooled) = self.clip.0.encode_text(cx, &self.text)?;
        let told = |entry: Value| {
            let entry = entry.with("aesthetic_score", self.ascore.into());
            entry.with("width", self.width.into()).with("height", self.height.into())
        };
        Ok(Conditioning::new(context, pooled).map_entries(told))
    }
}
