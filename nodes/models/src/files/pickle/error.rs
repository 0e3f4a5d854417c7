//! What can be wrong with a torch file: sentences that say what was met and at which byte.

/// Why a file is not read as a torch checkpoint. Offsets are counted from the file's beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// Neither of the two formats that `torch.save` writes.
    #[error("it is neither a zip archive nor a pickle of torch.save: {0}")]
    NotTorch(String),

    /// The zip container contradicts itself or the file's length.
    #[error("its zip container is damaged: {0}")]
    Archive(String),

    /// A member is compressed or encrypted, which `torch.save` never does.
    #[error("its member `{member}` is {how}; torch.save stores every member as it is")]
    Packed { member: String, how: String },

    /// A TorchScript archive holds code.
    #[error("it is a TorchScript program and not a checkpoint: save its state_dict instead")]
    TorchScript,

    /// The numbers are in the other byte order.
    #[error("its numbers are {0}-endian; only little-endian files are read")]
    ByteOrder(String),

    /// A global that is not on the list of what a checkpoint needs.
    #[error(
        "it asks for the global `{module}.{name}` (byte {at}), which is not allowed in a checkpoint; nothing was executed"
    )]
    Global { module: String, name: String, at: usize },

    /// An opcode that `torch.save` does not write, or that no protocol has.
    #[error("it has the pickle opcode {name} at byte {at}, which is not allowed in a checkpoint")]
    Opcode { name: String, at: usize },

    /// An allowed opcode with operands that it cannot have.
    #[error("its pickle opcode {name} at byte {at} {problem}")]
    Operand { name: &'static str, at: usize, problem: String },

    /// The pickle ends in the middle.
    #[error("its pickle ends in the middle, at byte {at}: the file is truncated")]
    Truncated { at: usize },

    /// The values would take more memory than the file itself.
    #[error("its pickle would unfold to more than {limit} bytes (byte {at}): refused as hostile")]
    TooLarge { limit: usize, at: usize },

    /// Containers within containers, or a container within itself.
    #[error("its containers are nested deeper than {limit} levels, or contain themselves")]
    TooDeep { limit: usize },

    /// A tensor does not fit its storage, or its storage the file.
    #[error("its tensor `{name}` {problem}")]
    Tensor { name: String, problem: String },
}
