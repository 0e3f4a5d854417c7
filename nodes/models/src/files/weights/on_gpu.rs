//! How many bytes of layers' weights stay on a GPU.
//!
//! A card that does not hold a model can compute with it all the same: what finds no place stays in main memory, where the file is
//! mapped, and a layer's weight is copied each time the layer computes. Who comes first stays; layers are read in the order in
//! which they compute.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use candle_core::{Device, Result as CandleResult, Tensor};

use super::Weight;
use crate::error::{Error, Result};

/// Says how many bytes there are, for all networks of a library; all of it is kept where it is not set.
const VARIABLE: &str = "KOSMOGRAPH_GPU_WEIGHTS";

/// The bytes that weights may take.
#[derive(Debug)]
pub(super) struct Room {
    bytes: usize,
    taken: AtomicUsize,
}

/// A part of a room, which is free again when this is gone.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub(super) fn new(bytes: usize) -> Arc<Room> {
        Arc::new(Room { bytes, taken: AtomicUsize::new(0) })
    }

    /// The room that there is by the environment, where it is bounded.
    ///
    /// # Errors
    /// The variable is no number.
    pub(super) fn of_the_environment() -> Result<Option<Arc<Room>>> {
        static ROOM: LazyLock<Result<Option<Arc<Room>>, String>> = LazyLock::new(|| {
            let Some(said) = std::env::var_os(VARIABLE).filter(|said| !said.is_empty()) else {
                return Ok(None);
            };
            match said.to_str().and_then(|said| said.trim().parse().ok()) {
                Some(bytes) => Ok(Some(Room::new(bytes))),
                None => Err(format!("{VARIABLE} is {said:?}; a number of bytes would be right")),
            }
        });
        ROOM.clone().map_err(Error::Input)
    }

    /// `tensor` on `device` where there is room for it, or else where it is, to be copied at each use.
    pub(super) fn keep(self: &Arc<Room>, tensor: Tensor, device: &Device) -> CandleResult<Weight> {
        match self.place(tensor.elem_count() * tensor.dtype().size_in_bytes()) {
            Some(place) => Ok(Weight::placed(tensor.to_device(device)?, place)),
            None => Ok(Weight::copied(tensor, device)),
        }
    }

    /// A place for `bytes`, where there is one.
    fn place(self: &Arc<Room>, bytes: usize) -> Option<Place> {
        let more = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= self.bytes);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Place { room: self.clone(), bytes })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_free_again_when_a_place_is_given_up() {
        let room = Room::new(10);
        let first = room.place(6);
        assert!(first.is_some() && room.place(5).is_none());
        let second = room.place(4);
        assert!(second.is_some() && room.place(1).is_none() && room.place(0).is_some());
        drop(first);
        assert!(room.place(6).is_some() && room.place(7).is_none());
        assert!(room.place(usize::MAX).is_none());
    }
}
