//! Memory is asked for before it is taken.
//!
//! An allocation that fails ends the process, and on Linux one that succeeds may end it later, when its pages are
//! touched. So wherever a number of a workflow or of a file sets a size, the need is compared with what there is
//! ([`available`]) first, and what is too much is a sentence with the sum: [`Shortage`].
//!
//! ```
//! let pixels = kosmograph_memory::filled("the pictures", &[2, 64, 64, 3], 0.5f32)?;
//! assert_eq!(pixels.len(), 2 * 64 * 64 * 3);
//! let error = kosmograph_memory::ask("the pictures", &[1 << 20, 1 << 20, 1 << 20], 4).unwrap_err();
//! assert!(error.to_string().starts_with("the pictures would take 4.61 EB"));
//! # Ok::<(), kosmograph_memory::Shortage>(())
//! ```

mod amount;
mod available;
#[cfg(target_os = "linux")]
mod cgroup;

use std::fmt::Display;

pub use amount::Amount;
pub use available::{Available, available};

/// A need below this is not compared with what there is: looking would cost more than taking it.
const SMALL: u128 = 1 << 22;

/// More is needed than there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    sentence: String,
}

impl Shortage {
    /// `what` would take `bytes`, which come about as `sum` says ("4 x 512 x 512 numbers of 4 bytes"; may be empty).
    /// `there` is what there is, where that is known.
    pub fn new(what: impl Display, bytes: u128, sum: &str, there: Option<Available>) -> Self {
        let sum = if sum.is_empty() { String::new() } else { format!(" ({sum})") };
        let there = match there {
            Some(there) => format!("there are {there}"),
            None => "there is not so much memory".to_owned(),
        };
        Self { sentence: format!("{what} would take {}{sum}, {there}", Amount(bytes)) }
    }
}

impl Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Shortage {}

/// Whether `what`, a tensor of this shape whose numbers have `bytes_each` bytes, fits into the memory there is.
///
/// # Errors
/// It does not, or the shape is more than a machine can count. `what` is a noun in the plural, "the latents".
pub fn ask(what: impl Display, shape: &[usize], bytes_each: usize) -> Result<(), Shortage> {
    let product = |bytes: u128, &side: &usize| bytes.saturating_mul(side as u128);
    let bytes = shape.iter().fold(bytes_each as u128, product);
    if bytes < SMALL {
        return Ok(());
    }
    let sides: Vec<String> = shape.iter().map(ToString::to_string).collect();
    ask_bytes(what, bytes, &format!("{} numbers of {bytes_each} bytes", sides.join(" x ")))
}

/// Whether `bytes` for `what` fit into the memory there is; `sum` says how they come about and may be empty.
///
/// # Errors
/// They do not.
pub fn ask_bytes(what: impl Display, bytes: u128, sum: &str) -> Result<(), Shortage> {
    if bytes < SMALL {
        return Ok(());
    }
    let there = available();
    // No allocation may be larger, whatever there is.
    let most = there.map_or(u128::MAX, |there| u128::from(there.bytes)).min(isize::MAX as u128);
    if bytes <= most {
        return Ok(());
    }
    Err(Shortage::new(what, bytes, sum, there))
}

/// An empty vector with room for the numbers of a tensor of this shape, asked for first.
///
/// # Errors
/// There is not so much memory.
pub fn room<T>(what: impl Display, shape: &[usize]) -> Result<Vec<T>, Shortage> {
    ask(&what, shape, size_of::<T>())?;
    let count = shape.iter().product();
    let mut room = Vec::new();
    if room.try_reserve_exact(count).is_err() {
        // Known only by trying: what there is was not known, or another process was faster.
        let bytes = count as u128 * size_of::<T>() as u128;
        return Err(Shortage::new(what, bytes, "", available()));
    }
    Ok(room)
}

/// The numbers of a tensor of this shape, all of them `value`, asked for first.
///
/// # Errors
/// There is not so much memory.
pub fn filled<T: Clone>(what: impl Display, shape: &[usize], value: T) -> Result<Vec<T>, Shortage> {
    let mut numbers = room(what, shape)?;
    numbers.resize(shape.iter().product(), value);
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_a_sentence_with_the_sum() {
        let shape = [4096, 4, 1 << 20, 1 << 20];
        let error = ask("the latents", &shape, 4).unwrap_err().to_string();
        let sum = "the latents would take 72.1 PB (4096 x 4 x 1048576 x 1048576 numbers of 4 bytes), there ";
        assert!(error.starts_with(sum), "{error}");
        assert_eq!(room::<f32>("the latents", &shape).unwrap_err().to_string()[..20], error[..20]);
        assert!(filled("the latents", &shape, 0f32).is_err());
    }

    #[test]
    fn what_cannot_be_counted_is_too_much() {
        let error = ask("the pictures", &[usize::MAX; 4], 4).unwrap_err().to_string();
        assert!(error.starts_with("the pictures would take 3402"), "{error}");
        assert!(ask_bytes("the pictures", u128::MAX, "").is_err());
    }

    #[test]
    fn what_is_there_is_given() {
        assert!(ask("the pictures", &[1 << 20], 8).is_ok());
        assert_eq!(filled("the pictures", &[2, 3], 1u8).unwrap(), [1; 6]);
        assert_eq!(room::<u8>("the pictures", &[0, 3]).unwrap().capacity(), 0);
    }
}
