//! What can be wrong with a LoRA.

/// What is wrong with a LoRA.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// Which file it is about.
    #[error("{file}: {problem}")]
    InFile { file: String, problem: Box<LoraError> },

    /// Another kind of adapter than a product of two small matrices.
    #[error(
        "this is a {kind}, as its tensor `{name}` shows, and {kind} is not supported; a LoRA, LoHa, LoKr, \
         DoRA, OFT, GLoRA, (IA)³ or a difference of weights would be right"
    )]
    Kind { kind: &'static str, name: String },

    /// No name in the file is one of a LoRA's.
    #[error(
        "this is no LoRA{}: it has no tensors such as `….lora_down.weight` and `….lora_up.weight`",
        first_name(first)
    )]
    NotALora { first: Option<String> },

    /// The factors of a layer do not fit each other.
    #[error("layer `{layer}` is damaged: {what}")]
    Damaged { layer: String, what: String },

    /// A layer has one matrix and not the other.
    #[error("layer `{layer}` has no {missing} weight: the file is not whole")]
    Incomplete { layer: String, missing: &'static str },

    /// Two names of the file mean the same tensor of a layer.
    #[error("`{second}` says once more what layer `{layer}` has already")]
    Twice { layer: String, second: String },

    /// A product over nothing.
    #[error("layer `{layer}` has rank 0: it is damaged")]
    RankZero { layer: String },

    /// The matrices do not fit each other.
    #[error(
        "layer `{layer}` is damaged: its down weight {down:?} and its up weight {up:?} are no pair of \
         [rank, in] and [out, rank]"
    )]
    Pair { layer: String, up: Vec<usize>, down: Vec<usize> },

    /// The core of a decomposed convolution does not fit.
    #[error("layer `{layer}` is damaged: its middle weight {mid:?} does not fit rank {rank}")]
    Mid { layer: String, mid: Vec<usize>, rank: usize },

    /// The scale or the strength is no number to multiply with.
    #[error("layer `{layer}` is multiplied by {factor}: a finite number is wanted")]
    Factor { layer: String, factor: f64 },

    /// A layer changes a weight of another shape.
    #[error(
        "layer `{layer}` of the LoRA changes a weight of {lora}, but this model's is {model:?}: the \
         LoRA was made for another model"
    )]
    Misfit { layer: String, lora: String, model: Vec<usize> },
}

impl From<LoraError> for crate::Error {
    fn from(error: LoraError) -> Self {
        crate::Error::Lora(error.into())
    }
}

fn first_name(name: &Option<String>) -> String {
    name.as_ref().map_or_else(String::new, |name| format!(" (its first tensor is `{name}`)"))
}
