//! Text to conditioning, by CLIP, and the layer it is taken from.

use node::*;

/// Encodes text with CLIP to what steers the denoiser.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct CLIPTextEncode {
    /// What the picture should show. (word:1.2) weighs a word, (word) by 1.1; embedding:NAME puts in a
    /// textual inversion.
    #[widget(multiline, default = "", mentions = "embeddings")]
    pub text: String,
    /// The text encoder.
    pub clip: Clip,
}

impl Node for CLIPTextEncode {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let (context, pooled) = self.clip.0.encode_text(cx, &self.text)?;
        Ok(Conditioning::new(context, pooled))
    }
}

/// Gives the ControlNets of a conditioning a text of their own: they read it in the place of the picture's.
#[derive(Inputs)]
#[node(category = "_for_testing/conditioning")]
pub struct CLIPTextEncodeControlnet {
    /// The text encoder.
    clip: Clip,
    /// What steers the denoiser, with ControlNets or before they are applied.
    conditioning: Conditioning,
    /// What the ControlNets read.
    #[widget(multiline, default = "", mentions = "embeddings")]
    text: String,
}

impl Node for CLIPTextEncodeControlnet {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let (context, _) = self.clip.0.encode_text(cx, &self.text)?;
        let context = context.into_value();
        Ok(self.conditioning.map_entries(|entry| entry.with("control_context", context.clone())))
    }
}

/// Takes the text's encoding from an earlier layer of CLIP than the last: "clip skip".
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct CLIPSetLastLayer {
    /// The text encoder.
    pub clip: Clip,
    /// The layer, counted from the end: -1 is the last, -2 the one before it.
    #[widget(default = -1, min = -24, max = -1, step = 1)]
    pub stop_at_clip_layer: i64,
}

impl Node for CLIPSetLastLayer {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        self.clip.0.stop_at_layer(cx, self.stop_at_clip_layer).map(Clip)
    }
}
