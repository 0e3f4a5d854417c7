//! Text to conditioning, by CLIP.

use node::*;

/// Encodes text with CLIP to what steers the denoiser.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct CLIPTextEncode {
    /// What the picture should show.
    #[widget(multiline, default = "")]
    text: String,
    /// The text encoder.
    clip: Clip,
}

impl Node for CLIPTextEncode {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let (context, pooled) = self.clip.0.encode_text(cx, &self.text)?;
        Ok(Conditioning::new(context, pooled))
    }
}
