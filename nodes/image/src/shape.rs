//! The shape of a batch of pictures, and the bound on how large one may become.

use std::fmt;

/// [B, H, W, C] of f32 values, row-major: channels vary fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

/// How many values a batch may have: 2³¹, which are 8 GiB as f32. A workflow that asks for more asks by mistake, and an allocation
/// that fails would end the host and not the node.
pub const MAX_VALUES: usize = 1 << 31;

/// More than [`MAX_VALUES`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a batch of {shape} would have more than {MAX_VALUES} values (8 GiB); ask for a smaller picture or fewer of them"
)]
pub struct TooLarge {
    pub shape: Shape,
}

impl Shape {
    /// B · H · W · C.
    ///
    /// # Errors
    /// More than [`MAX_VALUES`].
    pub fn values(self) -> Result<usize, TooLarge> {
        [self.height, self.width, self.channels]
            .iter()
            .try_fold(self.batch, |count, side| count.checked_mul(*side))
            .filter(|values| *values <= MAX_VALUES)
            .ok_or(TooLarge { shape: self })
    }

    /// Values of one row: W · C.
    pub fn row(self) -> usize {
        self.width * self.channels
    }

    /// Values of one picture: H · W · C.
    pub fn picture(self) -> usize {
        self.height * self.row()
    }

    /// As a tensor has it.
    pub fn dims(self) -> [usize; 4] {
        [self.batch, self.height, self.width, self.channels]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { batch, height, width, channels } = self;
        write!(f, "{batch} x {width} x {height} pixels with {channels} channels")
    }
}
