//! `TextInterleave`: text with pictures in it, read by the multimodal model.

use node::*;

/// Reads a text in which every <i> stands for a picture: image_1 for the first, image_2 for the second …
#[derive(Inputs)]
#[node(category = "kosmograph")]
pub struct TextInterleave {
    /// The multimodal model.
    kosmos: Kosmos,
    /// The text, "<i> wearing a crown on the beach"; without a mark it is text alone. Where no picture is
    /// connected, as for a negative prompt, a mark is text, too.
    #[widget(multiline, default = "")]
    text: String,
    /// The tokens of a picture, from ImageEncode.
    image: Numbered<ImageTokens, 10>,
}

impl Node for TextInterleave {
    outputs![HIDDEN_STATES: HiddenStates];

    fn run(self, cx: &Context) -> Result<HiddenStates> {
        let connected = self.image.0.iter().flatten().count();
        // A gap would give a mark another picture than its number says.
        if let Some(gap) = self.image.0.iter().take(connected).position(Option::is_none) {
            return Err(Error::at(
                format!("image_{}", gap + 1),
                "pictures are numbered without a gap, but this one is missing",
            ));
        }
        let images = self.image.0.into_iter().flatten().map(|tokens| tokens.0).collect();
        let (hidden_states, mask) = self.kosmos.0.interleave(cx, &self.text, images)?;
        Ok(HiddenStates::new(hidden_states, mask))
    }
}
