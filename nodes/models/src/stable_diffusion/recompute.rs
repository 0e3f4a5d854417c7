//! Gradients of a U-Net in less memory: what lies within a block is forgotten, and computed again when the block is
//! differentiated. The kernels' [`tape`] does so, and records what is kept; here is which block is which.

use std::cell::RefCell;

use candle_core::{Result as CandleResult, Tensor};
use kosmograph_kernels::tape;

pub use kosmograph_kernels::tape::{Gradients as TapeGradients, Tape as Recorded, record};

/// Which part of a U-Net: a ResNet block with the transformer behind it, the middle block, or what changes the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Down {
        level: usize,
        block: usize,
    },
    Downsampler {
        level: usize,
    },
    Middle,
    Up {
        level: usize,
        block: usize,
    },
    /// To this height and width.
    Upsampler {
        level: usize,
        size: (usize, usize),
    },
}

/// The blocks of one call of a network, by their numbers on the kernels' tape: for a call within [`record`].
#[derive(Debug, Default)]
pub struct Tape {
    places: RefCell<Vec<Place>>,
}

impl Tape {
    /// What `run` makes of `inputs`, of which nothing is kept between them and the result. Where no gradient is asked of
    /// it, it is computed as if there were no tape.
    pub(crate) fn block(
        &self,
        place: Place,
        inputs: &[&Tensor],
        run: impl FnOnce(&[Tensor]) -> CandleResult<Tensor>,
    ) -> CandleResult<Tensor> {
        let number = self.places.borrow().len();
        self.places.borrow_mut().push(place);
        tape::block(number, inputs, run)
    }

    /// The block of this number.
    pub(crate) fn place(&self, number: usize) -> CandleResult<Place> {
        match self.places.borrow().get(number) {
            Some(place) => Ok(*place),
            None => candle_core::bail!("no block {number} was recorded with this U-Net"),
        }
    }
}
