//! A file that is mapped, and tensors where they lie in it.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, WithDType};
use half::{bf16, f16};
use kosmograph_caching_allocator::vec_of_file;

/// The bytes of a file, which must not change while this or a tensor of it is in use.
///
/// Large tensors are the file's own pages: no copy is made, and no memory filled with zeros for one. The system reads them when
/// they are first computed with, and may drop and read them again where memory is short.
#[derive(Debug)]
pub(crate) struct Mapped {
    file: File,
    map: memmap2::Mmap,
}

impl Mapped {
    /// # Errors
    /// The file cannot be opened, or not be mapped.
    pub(crate) fn open(path: &Path) -> io::Result<Mapped> {
        let file = File::open(path)?;
        // SAFETY: the map is read only, and the file must not change while it is in use (said above). Bytes are only
        // ever read as numbers, for which any bits are valid.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        Ok(Mapped { file, map })
    }

    /// The bytes of `range` as the numbers of a tensor of that type and shape, on the CPU.
    ///
    /// # Errors
    /// There are not as many bytes as the shape wants.
    pub(crate) fn tensor(
        &self,
        range: Range<usize>,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Tensor> {
        let in_place = match dtype {
            DType::F32 => self.tensor_in_place::<f32>(&range, shape),
            DType::F16 => self.tensor_in_place::<f16>(&range, shape),
            DType::BF16 => self.tensor_in_place::<bf16>(&range, shape),
            DType::F64 => self.tensor_in_place::<f64>(&range, shape),
            _ => None,
        };
        match in_place {
            Some(tensor) => tensor,
            None => {
                let bytes = self.get(range.clone()).unwrap_or_default();
                let tensor = Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?;
                self.give_back(range);
                Ok(tensor)
            }
        }
    }

    fn tensor_in_place<T: WithDType>(
        &self,
        range: &Range<usize>,
        shape: &[usize],
    ) -> Option<Result<Tensor>> {
        let numbers = self.in_place::<T>(range)?;
        Some(Tensor::from_vec(numbers, shape, &Device::Cpu))
    }

    /// The bytes of `range`.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.in_place(&range).unwrap_or_else(|| {
            let bytes = self.get(range.clone()).unwrap_or_default().to_vec();
            self.give_back(range);
            bytes
        })
    }

    /// The numbers of `range` where they lie; nothing where they must be copied.
    fn in_place<T: Copy>(&self, range: &Range<usize>) -> Option<Vec<T>> {
        // Beyond its end a map has pages that nobody may look at. Files are little-endian.
        self.get(range.clone()).filter(|_| cfg!(target_endian = "little"))?;
        // SAFETY: the range is within the file, which must not change while it is in use (said above). `T` is a number,
        // for which any bits are valid.
        unsafe { vec_of_file(&self.file, range.start as u64, range.len() / size_of::<T>()) }
    }

    /// Gives back the pages that `range` was read from, so that who copied it has it once.
    pub(crate) fn give_back(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            let Some(bytes) = self.get(range.clone()) else { return };
            // SAFETY: the map is shared and read only, so pages that are given back come again with the same bytes when they
            // are looked at. Who cannot give them back has them still.
            let _ = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    bytes.len(),
                )
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers below and above what is copied, at places that are aligned and that are not.
    #[test]
    fn tensors_are_what_the_file_has() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("numbers");
        let bytes: Vec<u8> = (0..5usize << 20).map(|at| (at % 119) as u8).collect();
        std::fs::write(&path, &bytes).expect("room");
        let file = Mapped::open(&path).expect("it is there");
        for (start, count) in
            [(0, 4), (8, 1 << 18), (10, 1 << 18), (4096, 3 << 17), (1 << 20, 1 << 20)]
        {
            for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::U8] {
                let range = start..start + count * dtype.size_in_bytes();
                let Some(there) = bytes.get(range.clone()) else { continue };
                let wanted = Tensor::from_raw_buffer(there, dtype, &[count], &Device::Cpu)
                    .expect("a tensor");
                let found = file.tensor(range.clone(), dtype, &[count]).expect("a tensor");
                let (wanted, found) = (
                    wanted.to_dtype(DType::F64).expect("numbers"),
                    found.to_dtype(DType::F64).expect("numbers"),
                );
                let numbers = |tensor: Tensor| tensor.to_vec1::<f64>().expect("a list");
                assert_eq!(numbers(wanted), numbers(found), "{dtype:?} from {start}");
                assert_eq!(file.bytes(range), there);
            }
        }
        assert!(file.tensor(0..10, DType::F32, &[3]).is_err());
        assert!(file.tensor(0..4 << 20, DType::F32, &[7]).is_err());
    }

    #[test]
    fn what_is_changed_in_a_tensor_is_not_changed_in_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("numbers");
        std::fs::write(&path, vec![0u8; 4 << 20]).expect("room");
        let file = Mapped::open(&path).expect("it is there");
        let tensor = file.tensor(0..4 << 20, DType::F32, &[1 << 20]).expect("a tensor");
        let ones = tensor.ones_like().expect("ones");
        tensor.slice_set(&ones, 0, 0).expect("it has its own pages");
        assert_eq!(
            tensor.sum_all().and_then(|sum| sum.to_scalar::<f32>()).ok(),
            Some((1 << 20) as f32)
        );
        assert!(file.iter().all(|byte| *byte == 0));
        assert!(std::fs::read(&path).expect("it is there").iter().all(|byte| *byte == 0));
    }
}
