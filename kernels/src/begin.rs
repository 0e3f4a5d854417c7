//! What comes before every operator: whether to go on, and whether there is memory for the result.
//!
//! Between two operators is where a model can stop: none of them takes long, and nothing is left half-made.

use candle_core::{Error, Result, Tensor};
use kosmograph_interrupt as interrupt;
use kosmograph_memory as memory;

/// A result below this is not compared with what there is; models ask for what they take as a whole.
const LARGE: usize = 1 << 26;

/// `x` is an input of the operator `what`, `shape` that of its result, f32.
///
/// # Errors
/// The work is to stop, or there is not so much memory. (What a GPU has, it says itself.)
pub(crate) fn begin(what: &str, x: &Tensor, shape: &[usize]) -> Result<()> {
    interrupt::check().map_err(Error::wrap)?;
    let count = shape.iter().fold(1usize, |count, side| count.saturating_mul(*side));
    if x.device().is_cpu() && count > LARGE / size_of::<f32>() {
        memory::ask(format_args!("the results of {what}"), shape, size_of::<f32>())
            .map_err(Error::wrap)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn an_operator_stops_and_asks() -> Result<()> {
        let x = Tensor::zeros((1, 4), DType::F32, &Device::Cpu)?;
        let silu = || crate::silu(&x).map(drop).map_err(|error| error.to_string());
        assert_eq!(silu(), Ok(()));
        let told = interrupt::during(&|| true, silu).unwrap_err();
        assert!(told.starts_with("cancelled"), "{told}");
        // Seen as a large one, it takes no memory itself.
        let huge = x.narrow(1, 0, 1)?.broadcast_as((1 << 24, 1 << 24))?;
        let told = begin("silu", &huge, huge.dims()).unwrap_err().to_string();
        assert!(told.starts_with("the results of silu would take 1.13 PB"), "{told}");
        Ok(())
    }
}
