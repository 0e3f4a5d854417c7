//! `Aligner`: the multimodal model's thoughts in CLIP's language.

use node::*;

/// Translates hidden states to the conditioning that a Stable Diffusion U-Net expects from CLIP.
#[derive(Inputs)]
#[node(category = "kosmograph")]
pub struct Aligner {
    /// The model whose aligner translates.
    kosmos: Kosmos,
    /// What TextInterleave read.
    hidden_states: HiddenStates,
}

impl Node for Aligner {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let hidden_states = self.hidden_states.hidden_states()?;
        let mask = self.hidden_states.mask()?;
        let context = self.kosmos.0.align(cx, hidden_states, mask)?;
        Ok(Conditioning::new(context, None))
    }
}
