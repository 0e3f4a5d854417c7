//! The shape of a batch of pictures, and room for its values, which is asked for before it is taken.

use std::fmt;

use kosmograph_memory::{Shortage, filled, room};

/// [B, H, W, C] of f32 values, row-major: channels vary fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

impl Shape {
    /// B · H · W · C, which is a number: such pictures are there.
    pub fn values(self) -> usize {
        self.batch * self.picture()
    }

    /// An empty vector with room for the values of such pictures.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn room(self) -> Result<Vec<f32>, Shortage> {
        room("the pictures", &self.dims())
    }

    /// The values of such pictures, all of them 0.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn zeros(self) -> Result<Vec<f32>, Shortage> {
        filled("the pictures", &self.dims(), 0.0)
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
