//! GGUF, the container of llama.cpp and stable-diffusion.cpp: a header of values by name and of tensors,
//! then the tensors' numbers. Versions 2 and 3, as ggml's documentation has them (docs/gguf.md).
//!
//! candle's reader takes the memory for what a header says before it looks whether the file has it, and
//! goes as deep as lists lie in lists. This one takes nothing above what it has read, and knows lists of
//! plain values only; the values themselves are passed over but for a few.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Result as CandleResult, Tensor};

use super::mapped::Mapped;
use super::packed::Format;
use super::weights::Numbers;
use crate::error::{Error, Result};

/// A mapped GGUF file and the tensors in it.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Mapped,
    header: Header,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// The outermost axis first, as everywhere here; the file has them the other way round.
    pub(crate) shape: Vec<usize>,
    pub(crate) numbers: Result<Numbers, String>,
    bytes: Range<usize>,
}

/// What stands before the numbers.
#[derive(Debug, Default)]
struct Header {
    /// The values that are text.
    texts: HashMap<String, String>,
    tensors: BTreeMap<String, TensorInfo>,
}

const MAGIC: &[u8] = b"GGUF";

/// Where ComfyUI-GGUF writes the shape of a tensor that it has laid out in other rows, to fill blocks.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

impl GgufFile {
    /// Opens the file and finds its tensors; no number is read. The file must not change while it is in use.
    ///
    /// # Errors
    /// The file cannot be read, or its header contradicts itself or the file's length.
    pub fn open(path: &Path) -> Result<GgufFile> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let map = Mapped::open(path).map_err(io)?;
        let header =
            read(&map).map_err(|problem| Error::NotGguf { path: path.to_owned(), problem })?;
        Ok(GgufFile { path: path.to_owned(), map, header })
    }

    /// Does the file begin as one of this kind does?
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// The value `key`, where it is text.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.texts.get(key).map(String::as_str)
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name)
    }

    /// A tensor of plain numbers, of the type that they have there.
    pub(crate) fn tensor(&self, name: &str, dtype: DType) -> CandleResult<Option<Tensor>> {
        let tensor = |info: &TensorInfo| self.map.tensor(info.bytes.clone(), dtype, &info.shape);
        self.info(name).map(tensor).transpose()
    }

    /// The bytes of a tensor, as a vector of their own.
    pub(crate) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        Some(self.map.bytes(self.info(name)?.bytes.clone()))
    }
}

type Read<T> = std::result::Result<T, String>;

/// The types of values.
mod kind {
    pub(super) const UINT32: u32 = 4;
    pub(super) const INT32: u32 = 5;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;

    /// The bytes of a value that has as many whatever it is.
    pub(super) fn size(kind: u32) -> Option<usize> {
        Some(match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => return None,
        })
    }
}

/// What is left of the bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            format!(
                "its header goes on for {length} bytes at byte {}, and the file has {}: truncated",
                self.at,
                self.bytes.len()
            )
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Read<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A count or a length: 64 bits.
    fn count(&mut self) -> Read<usize> {
        let bytes = self.take(8)?;
        let mut count = [0; 8];
        count.copy_from_slice(bytes);
        let count = u64::from_le_bytes(count);
        usize::try_from(count).map_err(|_| format!("it counts to {count}"))
    }

    fn text(&mut self) -> Read<&'a [u8]> {
        let length = self.count()?;
        self.take(length)
    }

    /// A name, in UTF-8.
    fn name(&mut self) -> Read<&'a str> {
        let at = self.at;
        std::str::from_utf8(self.text()?).map_err(|_| format!("its name at byte {at} is not UTF-8"))
    }

    /// Passes over a value.
    fn skip(&mut self, value: u32) -> Read<()> {
        match value {
            kind::STRING => drop(self.text()?),
            kind::ARRAY => {
                let (of, length) = (self.u32()?, self.count()?);
                match (of, kind::size(of)) {
                    // Each text takes eight bytes or more, so this ends where the file does.
                    (kind::STRING, _) => {
                        for _ in 0..length {
                            self.text()?;
                        }
                    }
                    (_, Some(size)) => {
                        let bytes = length.checked_mul(size);
                        self.take(
                            bytes.ok_or_else(|| format!("a list of it has {length} values"))?,
                        )?;
                    }
                    _ => return Err(format!("a list of it has values of the type {of}")),
                }
            }
            _ => {
                let size = kind::size(value);
                self.take(size.ok_or_else(|| format!("a value of it has the type {value}"))?)?;
            }
        }
        Ok(())
    }
}

/// The header of the file whose bytes these are.
fn read(bytes: &[u8]) -> Read<Header> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != MAGIC {
        return Err("it does not begin with \"GGUF\"".to_owned());
    }
    match cursor.u32()? {
        2 | 3 => {}
        other if other.swap_bytes() <= 3 => {
            return Err("it is one for big-endian machines, which is not read".to_owned());
        }
        other => return Err(format!("it is of version {other}; 2 and 3 are read")),
    }
    let (tensors, values) = (cursor.count()?, cursor.count()?);
    let mut header = Header::default();
    let (mut shapes, mut alignment) = (HashMap::new(), 32);
    for _ in 0..values {
        let (name, value) = (cursor.name()?, cursor.u32()?);
        match (name, value) {
            (_, kind::STRING) => {
                let text = cursor.text()?;
                header.texts.insert(name.to_owned(), String::from_utf8_lossy(text).into_owned());
            }
            ("general.alignment", kind::UINT32) => {
                alignment = cursor.u32()? as usize;
                if !alignment.is_power_of_two() {
                    return Err(format!("its alignment is {alignment}, no power of two"));
                }
            }
            (name, kind::ARRAY) if name.starts_with(ORIGINAL_SHAPE) => {
                let of = &name[ORIGINAL_SHAPE.len()..];
                shapes.insert(of.to_owned(), shape(&mut cursor, name)?);
            }
            _ => cursor.skip(value)?,
        }
    }
    let mut places = Vec::new();
    for _ in 0..tensors {
        let name = cursor.name()?;
        let axes = cursor.u32()?;
        if axes > 4 {
            return Err(format!("its tensor `{name}` has {axes} axes, and there are four at most"));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.insert(0, cursor.count()?);
        }
        let (of, offset) = (cursor.u32()?, cursor.count()?);
        places.push((name, shape, of, offset));
    }
    let data = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    for (name, stored, of, offset) in places {
        let info = place(name, stored, of, (data, offset), bytes.len(), shapes.remove(name))?;
        if header.tensors.insert(name.to_owned(), info).is_some() {
            return Err(format!("it has two tensors `{name}`"));
        }
    }
    Ok(header)
}

/// A list of whole numbers that is a shape.
fn shape(cursor: &mut Cursor, name: &str) -> Read<Vec<usize>> {
    let (of, length) = (cursor.u32()?, cursor.count()?);
    if ![kind::UINT32, kind::INT32].contains(&of) || length > 8 {
        return Err(format!("its `{name}` is no shape"));
    }
    let axis = |_| Ok(cursor.u32()? as usize);
    (0..length).map(axis).collect()
}

/// A tensor's place in a file of `length` bytes, whose numbers begin at `data`.
fn place(
    name: &str,
    stored: Vec<usize>,
    of: u32,
    (data, offset): (usize, usize),
    length: usize,
    original: Option<Vec<usize>>,
) -> Read<TensorInfo> {
    let product = |shape: &[usize]| shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
    let count = product(&stored);
    let count = count.ok_or_else(|| format!("its tensor `{name}` has the shape {stored:?}"))?;
    let numbers = numbers(of);
    let size = match &numbers {
        Ok(Numbers::Plain(dtype)) => count.checked_mul(dtype.size_in_bytes()),
        Ok(Numbers::Packed(format)) => {
            // Blocks do not go from one row into the next.
            let row = stored.last().copied().unwrap_or(1);
            let whole = row.is_multiple_of(format.block().0);
            Some(format.bytes(count).filter(|_| whole).ok_or_else(|| {
                format!("its tensor `{name}` of {stored:?} does not fill blocks of {format:?}")
            })?)
        }
        // Nobody reads it, so where it ends is not known.
        Err(_) => Some(0),
    };
    let start = data.checked_add(offset);
    let bytes = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
    let bytes = bytes.filter(|bytes| bytes.end <= length).ok_or_else(|| {
        format!(
            "its tensor `{name}` of {stored:?} ends behind the file's {length} bytes: truncated"
        )
    })?;
    let shape = match original {
        None => stored,
        Some(original) if product(&original) == Some(count) => original,
        Some(original) => {
            return Err(format!(
                "its tensor `{name}` of {stored:?} is said to have been {original:?}"
            ));
        }
    };
    Ok(TensorInfo { shape, numbers, bytes })
}

/// ggml's types.
fn numbers(of: u32) -> Result<Numbers, String> {
    Ok(match of {
        0 => Numbers::Plain(DType::F32),
        1 => Numbers::Plain(DType::F16),
        2 => Numbers::Packed(Format::Q4_0),
        3 => Numbers::Packed(Format::Q4_1),
        6 => Numbers::Packed(Format::Q5_0),
        7 => Numbers::Packed(Format::Q5_1),
        8 => Numbers::Packed(Format::Q8_0),
        10 => Numbers::Packed(Format::Q2K),
        11 => Numbers::Packed(Format::Q3K),
        12 => Numbers::Packed(Format::Q4K),
        13 => Numbers::Packed(Format::Q5K),
        14 => Numbers::Packed(Format::Q6K),
        20 => Numbers::Packed(Format::Iq4Nl),
        23 => Numbers::Packed(Format::Iq4Xs),
        27 => Numbers::Plain(DType::I64),
        28 => Numbers::Plain(DType::F64),
        30 => Numbers::Plain(DType::BF16),
        other => return Err(format!("ggml's type number {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header, then `data`.
    #[derive(Default)]
    struct File {
        values: Vec<u8>,
        value_count: u64,
        tensors: Vec<u8>,
        tensor_count: u64,
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    impl File {
        fn value(&mut self, name: &str, kind: u32, bytes: &[u8]) {
            self.values.extend([&text(name)[..], &kind.to_le_bytes(), bytes].concat());
            self.value_count += 1;
        }

        /// `shape` as the file has it, the innermost axis first.
        fn tensor(&mut self, name: &str, shape: &[u64], of: u32, offset: u64) {
            self.tensors.extend(text(name));
            self.tensors.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|axis| self.tensors.extend(axis.to_le_bytes()));
            self.tensors.extend(of.to_le_bytes());
            self.tensors.extend(offset.to_le_bytes());
            self.tensor_count += 1;
        }

        fn bytes(&self, data: &[u8]) -> Vec<u8> {
            let counts = [self.tensor_count.to_le_bytes(), self.value_count.to_le_bytes()];
            let mut bytes =
                [MAGIC, &3u32.to_le_bytes(), &counts.concat(), &self.values, &self.tensors]
                    .concat();
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
            bytes
        }
    }

    #[test]
    fn a_file_s_tensors_and_texts_are_found() {
        let mut file = File::default();
        file.value("general.architecture", 8, &text("sdxl"));
        file.value("numbers", 9, &[&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0; 8]].concat());
        let names = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("a")].concat();
        file.value("names", 9, &names);
        let shape = [&5u32.to_le_bytes()[..], &3u64.to_le_bytes()].concat();
        let axes = [8u32, 4, 2].map(u32::to_le_bytes).concat();
        file.value("comfy.gguf.orig_shape.b", 9, &[shape, axes].concat());
        file.tensor("a", &[3, 2], 0, 0);
        file.tensor("b", &[64], 8, 32);
        file.tensor("c", &[], 0, 24);
        let bytes = file.bytes(&[1; 32 + 68]);
        let header = read(&bytes).expect("a header");
        assert_eq!(header.texts["general.architecture"], "sdxl");
        let [a, b, c] = ["a", "b", "c"].map(|name| &header.tensors[name]);
        assert_eq!(
            (&a.shape[..], &b.shape[..], &c.shape[..]),
            (&[2, 3][..], &[8, 4, 2][..], &[][..])
        );
        assert_eq!(a.numbers, Ok(Numbers::Plain(DType::F32)));
        assert_eq!(b.numbers, Ok(Numbers::Packed(Format::Q8_0)));
        let start = bytes.len() - 100;
        assert_eq!([&a.bytes, &b.bytes], [&(start..start + 24), &(start + 32..start + 100)]);
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_said() {
        let fails = |make: &dyn Fn(&mut File), part: &str| {
            let mut file = File::default();
            make(&mut file);
            let problem = read(&file.bytes(&[0; 64])).expect_err(part);
            assert!(problem.contains(part), "{problem}");
        };
        fails(&|file| file.value_count = u64::MAX, "truncated");
        fails(&|file| file.tensor_count = u64::MAX, "truncated");
        fails(&|file| file.value("a", 8, &u64::MAX.to_le_bytes()), "truncated");
        fails(&|file| file.value("a", 13, &[]), "type 13");
        let list = |of: u32, length: u64| [&of.to_le_bytes()[..], &length.to_le_bytes()].concat();
        fails(&|file| file.value("a", 9, &list(9, 1)), "type 9");
        fails(&|file| file.value("a", 9, &list(10, u64::MAX / 2)), "values");
        fails(&|file| file.value("a", 9, &list(8, u64::MAX)), "truncated");
        fails(&|file| file.value("a", 9, &list(0, 1 << 40)), "truncated");
        fails(&|file| file.value("general.alignment", 4, &0u32.to_le_bytes()), "alignment");
        fails(&|file| file.value("comfy.gguf.orig_shape.a", 9, &list(5, 9)), "no shape");
        fails(&|file| file.tensor("a", &[1; 5], 0, 0), "5 axes");
        fails(&|file| file.tensor("a", &[u64::MAX, 2], 0, 0), "shape");
        fails(&|file| file.tensor("a", &[4], 0, 52), "truncated");
        fails(&|file| file.tensor("a", &[4], 0, u64::MAX), "truncated");
        fails(&|file| file.tensor("a", &[48, 2], 8, 0), "blocks");
        fails(&|file| (0..2).for_each(|_| file.tensor("a", &[1], 0, 0)), "two tensors");
        let original = [list(5, 1), 3u32.to_le_bytes().to_vec()].concat();
        let reshaped = |file: &mut File| {
            file.value("comfy.gguf.orig_shape.a", 9, &original);
            file.tensor("a", &[4], 0, 0);
        };
        fails(&reshaped, "said to have been");
        let mut file = File::default();
        file.tensor("a", &[4], 99, 0);
        let header = read(&file.bytes(&[])).expect("a header");
        assert!(header.tensors["a"].numbers.as_ref().is_err_and(|said| said.contains("99")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&[&b"GGUF\x03\0\0\0"[..], &bytes].concat());
        }

        #[test]
        fn any_change_of_a_byte_is_read_or_refused(at in 0usize..300, byte: u8) {
            let mut file = File::default();
            file.value("general.architecture", 8, &text("sd1"));
            file.value("list", 9, &[&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("a")].concat());
            file.tensor("a", &[3, 2], 0, 0);
            file.tensor("b", &[64, 2], 2, 32);
            let mut bytes = file.bytes(&[0; 128]);
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(header) = read(&bytes) {
                for info in header.tensors.values() {
                    prop_assert!(info.bytes.end <= bytes.len());
                }
            }
        }
    }
}
