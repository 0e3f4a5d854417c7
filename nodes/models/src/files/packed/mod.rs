//! Weights in fewer bits than the kernels compute with: fp8 and ggml's blocks. They stay as the file has
//! them, and are widened to f32 where a layer uses them, one layer at a time.

mod fp8;
mod ggml;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use rayon::prelude::*;

/// How numbers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F8E4M3,
    F8E5M2,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

impl Format {
    /// The numbers of a block and the bytes that it takes.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Format::F8E4M3 | Format::F8E5M2 => (1, 1),
            Format::Q4_0 | Format::Iq4Nl => (32, 2 + 16),
            Format::Q4_1 => (32, 4 + 16),
            Format::Q5_0 => (32, 2 + 4 + 16),
            Format::Q5_1 => (32, 4 + 4 + 16),
            Format::Q8_0 => (32, 2 + 32),
            Format::Q2K => (256, 16 + 64 + 4),
            Format::Q3K => (256, 32 + 64 + 12 + 2),
            Format::Q4K => (256, 4 + 12 + 128),
            Format::Q5K => (256, 4 + 12 + 32 + 128),
            Format::Q6K => (256, 128 + 64 + 16 + 2),
            Format::Iq4Xs => (256, 2 + 2 + 4 + 128),
        }
    }

    /// The bytes of so many numbers; nothing where they fill no whole blocks.
    pub(crate) fn bytes(self, numbers: usize) -> Option<usize> {
        let (length, bytes) = self.block();
        if !numbers.is_multiple_of(length) {
            return None;
        }
        (numbers / length).checked_mul(bytes)
    }

    /// What a block stands for.
    fn widen_block(self, block: &[u8], numbers: &mut [f32]) {
        match self {
            Format::F8E4M3 => numbers.fill(fp8::e4m3(block[0])),
            Format::F8E5M2 => numbers.fill(fp8::e5m2(block[0])),
            Format::Q4_0 => ggml::q4_0(block, numbers),
            Format::Q4_1 => ggml::q4_1(block, numbers),
            Format::Q5_0 => ggml::q5_0(block, numbers),
            Format::Q5_1 => ggml::q5_1(block, numbers),
            Format::Q8_0 => ggml::q8_0(block, numbers),
            Format::Q2K => ggml::q2_k(block, numbers),
            Format::Q3K => ggml::q3_k(block, numbers),
            Format::Q4K => ggml::q4_k(block, numbers),
            Format::Q5K => ggml::q5_k(block, numbers),
            Format::Q6K => ggml::q6_k(block, numbers),
            Format::Iq4Nl => ggml::iq4_nl(block, numbers),
            Format::Iq4Xs => ggml::iq4_xs(block, numbers),
        }
    }

    /// What `bytes` stand for: `numbers` is as long as the blocks fill.
    fn widen(self, bytes: &[u8], numbers: &mut [f32]) {
        // The table is one lookup for each byte.
        let table = match self {
            Format::F8E4M3 => Some(&fp8::E4M3),
            Format::F8E5M2 => Some(&fp8::E5M2),
            _ => None,
        };
        let (length, size) = self.block();
        // Some blocks at once, so that dividing the work costs nothing beside it.
        let blocks = (16384 / length).max(1);
        let some = numbers.par_chunks_mut(blocks * length).zip(bytes.par_chunks(blocks * size));
        some.for_each(|(numbers, bytes)| match table {
            Some(table) => {
                let each = numbers.iter_mut().zip(bytes);
                each.for_each(|(number, byte)| *number = table[usize::from(*byte)]);
            }
            None => {
                let each = numbers.chunks_exact_mut(length).zip(bytes.chunks_exact(size));
                each.for_each(|(numbers, block)| self.widen_block(block, numbers));
            }
        });
    }

    /// Where the 16-bit factors of a block lie; none in fp8, whose numbers stand alone.
    fn factors(self) -> &'static [usize] {
        match self {
            Format::F8E4M3 | Format::F8E5M2 => &[],
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
        }
    }
}

/// What the widened numbers are multiplied with.
#[derive(Clone, Debug)]
pub(crate) enum Scale {
    One,
    All(f32),
    /// A factor for each row.
    Rows(Vec<f32>),
}

/// A weight as its file keeps it.
#[derive(Debug)]
pub(crate) struct Packed {
    format: Format,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    scale: Scale,
}

impl Packed {
    /// `bytes` has as many blocks as the shape has numbers, and `scale` as many rows: who reads the file has
    /// seen to it.
    pub(crate) fn new(format: Format, shape: Vec<usize>, bytes: Vec<u8>, scale: Scale) -> Packed {
        debug_assert_eq!(format.bytes(shape.iter().product()), Some(bytes.len()));
        Packed { format, shape, bytes, scale }
    }

    /// `tensor`, of any float type, with its numbers rounded to the nearest of `format`, one of the fp8.
    /// A number beyond its range becomes NaN, or an infinity where there is one, as in torch.
    pub(crate) fn rounded(tensor: &Tensor, format: Format) -> CandleResult<Packed> {
        let numbers = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes = numbers.par_iter().map(|number| match format {
            Format::F8E5M2 => fp8::to_e5m2(*number),
            _ => fp8::to_e4m3(*number),
        });
        let format = if format == Format::F8E5M2 { format } else { Format::F8E4M3 };
        Ok(Packed::new(format, tensor.dims().to_vec(), bytes.collect(), Scale::One))
    }

    /// A copy of `count` rows from `start` on; nothing where they begin or end within a block.
    pub(crate) fn rows(&self, start: usize, count: usize) -> Option<Packed> {
        let (rows, row) = self.shape.split_first()?;
        let row: usize = row.iter().product();
        let (length, size) = self.format.block();
        let end = start.checked_add(count).filter(|end| end <= rows)?;
        if !(start * row).is_multiple_of(length) || !(end * row).is_multiple_of(length) {
            return None;
        }
        let bytes = self.bytes[start * row / length * size..end * row / length * size].to_vec();
        let scale = match &self.scale {
            Scale::Rows(scales) => Scale::Rows(scales[start..end].to_vec()),
            other => other.clone(),
        };
        let mut shape = self.shape.clone();
        shape[0] = count;
        Some(Packed::new(self.format, shape, bytes, scale))
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What it stands for, f32 on the CPU.
    ///
    /// # Errors
    /// There is not the memory for it.
    pub(crate) fn widen(&self) -> CandleResult<Tensor> {
        let what = format_args!("a layer's weight of {:?} in f32", self.shape);
        let mut numbers =
            kosmograph_memory::filled(what, &self.shape, 0f32).map_err(candle_core::Error::wrap)?;
        self.format.widen(&self.bytes, &mut numbers);
        match &self.scale {
            Scale::One => {}
            Scale::All(scale) => numbers.par_iter_mut().for_each(|number| *number *= scale),
            Scale::Rows(scales) => {
                let length = (numbers.len() / scales.len().max(1)).max(1);
                let rows = numbers.par_chunks_mut(length).zip(scales);
                rows.for_each(|(row, scale)| row.iter_mut().for_each(|number| *number *= scale));
            }
        }
        Tensor::from_vec(numbers, &self.shape[..], &Device::Cpu)
    }

    /// The first number that is NaN or infinite, and its place. Of ggml's blocks, whose numbers are sums and
    /// products of small whole numbers and two factors, the factors are looked at.
    pub(crate) fn not_finite(&self) -> Option<(usize, f32)> {
        let (length, size) = self.format.block();
        let factors = self.format.factors();
        let widened = |byte: u8| match self.format {
            Format::F8E5M2 => fp8::e5m2(byte),
            _ => fp8::e4m3(byte),
        };
        let damaged = |block: &[u8]| -> Option<f32> {
            if factors.is_empty() {
                return Some(widened(block[0])).filter(|number| !number.is_finite());
            }
            let mut values = factors.iter().map(|at| ggml::f16(&block[*at..]));
            values.find(|value| !value.is_finite())
        };
        let first =
            self.bytes.par_chunks_exact(size).position_first(|block| damaged(block).is_some())?;
        let value = damaged(&self.bytes[first * size..][..size])?;
        Some((first * length, value))
    }
}
