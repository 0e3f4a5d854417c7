//! The zip container of `torch.save` (since 1.6): members that are stored, not compressed.
//!
//! Read from the map without a copy. It is read here and not by the zip crate because that one is
//! made to be lenient (something before the archive, several directories, compression), and every
//! leniency is a way for two readers to see two files in one: what torch never writes is refused.

use std::collections::HashMap;
use std::ops::Range;

use super::error::PickleError;

/// The length of the end of central directory record, without its comment.
const END: usize = 22;
const ZIP64_LOCATOR: usize = 20;
const ZIP64_END: usize = 56;
const ENTRY: usize = 46;
const LOCAL: usize = 30;

/// The members by name, each a range of the file.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    members: HashMap<&'a str, Range<usize>>,
}

impl<'a> Archive<'a> {
    /// Is this the beginning of a zip archive?
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
    }

    /// Reads the directory; every member lies within the file, before the directory, and over no
    /// other.
    pub fn open(bytes: &'a [u8]) -> Result<Self, PickleError> {
        let directory = find_directory(bytes)?;
        let mut rest = Fields { bytes: &bytes[directory.range.clone()], at: 0 };
        let mut members = HashMap::with_capacity(directory.entries);
        let mut ranges = Vec::with_capacity(directory.entries);
        for number in 0..directory.entries {
            let (name, local, range) = member(bytes, &mut rest, directory.range.start)
                .map_err(|error| in_entry(error, number))?;
            ranges.push((local, range.end));
            if members.insert(name, range).is_some() {
                return Err(broken(format!("it has two members `{name}`")));
            }
        }
        if rest.at != rest.bytes.len() {
            return Err(broken("its directory is longer than its entries".to_owned()));
        }
        ranges.sort_unstable();
        if ranges.windows(2).any(|pair| pair[1].0 < pair[0].1) {
            return Err(broken("two members overlap".to_owned()));
        }
        Ok(Self { members })
    }

    /// Where the member `name` lies.
    pub fn member(&self, name: &str) -> Option<Range<usize>> {
        self.members.get(name).cloned()
    }

    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.members.keys().copied()
    }
}

fn broken(problem: String) -> PickleError {
    PickleError::Archive(problem)
}

fn in_entry(error: PickleError, number: usize) -> PickleError {
    match error {
        PickleError::Archive(problem) => broken(format!("{problem} (entry {number})")),
        other => other,
    }
}

/// Little-endian numbers one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| broken("a record ends in the middle".to_owned()))?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16, PickleError> {
        Ok(self.take(2)?.iter().rev().fold(0, |n, byte| n << 8 | u16::from(*byte)))
    }

    fn u32(&mut self) -> Result<u32, PickleError> {
        Ok(self.take(4)?.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    fn u64(&mut self) -> Result<u64, PickleError> {
        Ok(self.take(8)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }
}

struct Directory {
    range: Range<usize>,
    entries: usize,
}

fn find_directory(bytes: &[u8]) -> Result<Directory, PickleError> {
    let truncated = || broken("it has no directory at its end: the file is truncated".to_owned());
    let last = bytes.len().checked_sub(END).ok_or_else(truncated)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let is_end = |at: usize| {
        let comment = u16::from_le_bytes([bytes[at + 20], bytes[at + 21]]);
        bytes[at..].starts_with(b"PK\x05\x06") && at + END + usize::from(comment) == bytes.len()
    };
    let end = (first..=last).rev().find(|at| is_end(*at)).ok_or_else(truncated)?;
    let mut fields = Fields { bytes, at: end + 4 };
    let disks = (fields.u16()?, fields.u16()?);
    let (entries_here, entries) = (fields.u16()?, fields.u16()?);
    let (length, offset) = (fields.u32()?, fields.u32()?);
    if entries_here != entries || (disks != (0, 0) && disks != (u16::MAX, u16::MAX)) {
        return Err(broken("it is split over several files".to_owned()));
    }
    let mut found = (u64::from(entries), u64::from(length), u64::from(offset));
    let mut directory_end = end;
    let saturated = entries == u16::MAX || length == u32::MAX || offset == u32::MAX;
    let locator =
        end.checked_sub(ZIP64_LOCATOR).filter(|at| bytes[*at..].starts_with(b"PK\x06\x07"));
    match locator {
        None if saturated => {
            return Err(broken("its zip64 record is missing".to_owned()));
        }
        None => (),
        Some(locator) => {
            let mut fields = Fields { bytes, at: locator + 8 };
            let at = fields.u64()?;
            let wanted = locator.checked_sub(ZIP64_END);
            let at = usize::try_from(at).ok().filter(|at| wanted.is_some_and(|last| *at <= last));
            let at = at.filter(|at| bytes[*at..].starts_with(b"PK\x06\x06"));
            let at =
                at.ok_or_else(|| broken("its zip64 locator points at no zip64 record".to_owned()))?;
            let mut fields = Fields { bytes, at: at + 24 };
            let (here, wide) = (fields.u64()?, (fields.u64()?, fields.u64()?, fields.u64()?));
            let agrees = |narrow: u64, wide: u64, full: u64| narrow == wide || narrow == full;
            if here != wide.0
                || !agrees(found.0, wide.0, u16::MAX.into())
                || !agrees(found.1, wide.1, u32::MAX.into())
                || !agrees(found.2, wide.2, u32::MAX.into())
            {
                return Err(broken("its zip64 record contradicts its directory".to_owned()));
            }
            found = wide;
            directory_end = at;
        }
    }
    let (entries, length, offset) = found;
    let outside = || {
        broken(format!(
            "its directory of {length} bytes at {offset} is not inside the file's {} bytes",
            bytes.len()
        ))
    };
    let start = usize::try_from(offset).map_err(|_| outside())?;
    let stop = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
    let stop = stop.filter(|stop| *stop <= directory_end).ok_or_else(outside)?;
    // Each has a header of its own as well: what is kept of them is never more than the file.
    let most = ((stop - start) / ENTRY).min(bytes.len() / (LOCAL + ENTRY));
    let entries = usize::try_from(entries).ok().filter(|entries| *entries <= most);
    let entries = entries.ok_or_else(|| {
        broken(format!("it claims {} members, its directory has room for {most}", found.0))
    })?;
    Ok(Directory { range: start..stop, entries })
}

/// Reads one entry of the directory and the local header that it points at: name, where the header
/// begins, where the content lies.
fn member<'a>(
    bytes: &'a [u8],
    entry: &mut Fields<'a>,
    directory: usize,
) -> Result<(&'a str, usize, Range<usize>), PickleError> {
    if entry.take(4)? != b"PK\x01\x02" {
        return Err(broken("its directory has something that is no entry".to_owned()));
    }
    entry.take(4)?;
    let (flags, method) = (entry.u16()?, entry.u16()?);
    entry.take(8)?;
    let (packed, length) = (entry.u32()?, entry.u32()?);
    let (name_length, extra_length, comment_length) = (entry.u16()?, entry.u16()?, entry.u16()?);
    entry.take(8)?;
    let local = entry.u32()?;
    let name = std::str::from_utf8(entry.take(name_length.into())?)
        .map_err(|_| broken("a member's name is not UTF-8".to_owned()))?;
    let extra = entry.take(extra_length.into())?;
    entry.take(comment_length.into())?;

    let refused = |how: &str| PickleError::Packed { member: name.to_owned(), how: how.to_owned() };
    if method != 0 && name.contains("/code/") {
        return Err(PickleError::TorchScript);
    }
    if flags & 1 != 0 {
        return Err(refused("encrypted"));
    }
    if method != 0 {
        return Err(refused(&format!("compressed (method {method})")));
    }
    let (packed, length, local) = widen(name, extra, packed, length, local)?;
    if packed != length {
        return Err(broken(format!(
            "`{name}` is stored, but is {packed} bytes packed and {length} unpacked"
        )));
    }
    let outside = || {
        broken(format!(
            "`{name}`, {length} bytes at {local}, is not inside the file's {} bytes",
            bytes.len()
        ))
    };
    let local = usize::try_from(local).map_err(|_| outside())?;
    let header_end = local.checked_add(LOCAL).filter(|end| *end <= directory);
    header_end.ok_or_else(outside)?;
    let mut header = Fields { bytes: &bytes[..directory], at: local };
    if header.take(4)? != b"PK\x03\x04" {
        return Err(broken(format!("`{name}` has no header where its entry says")));
    }
    header.take(22)?;
    let (local_name, local_extra) = (header.u16()?, header.u16()?);
    if header.take(local_name.into())? != name.as_bytes() {
        return Err(broken(format!("`{name}` is called otherwise in its own header")));
    }
    header.take(local_extra.into())?;
    let start = header.at;
    let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
    let end = end.filter(|end| *end <= directory).ok_or_else(outside)?;
    Ok((name, local, start..end))
}

/// Packed length, length and offset, from the zip64 field where 32 bits are too few.
fn widen(
    name: &str,
    extra: &[u8],
    packed: u32,
    length: u32,
    local: u32,
) -> Result<(u64, u64, u64), PickleError> {
    let mut fields = Fields { bytes: extra, at: 0 };
    let mut zip64 = None;
    while fields.at < extra.len() {
        let (id, size) = (fields.u16()?, fields.u16()?);
        let content = fields.take(size.into())?;
        if id == 1 && zip64.replace(Fields { bytes: content, at: 0 }).is_some() {
            return Err(broken(format!("`{name}` has two zip64 fields")));
        }
    }
    let mut wide = |narrow: u32| match (narrow, &mut zip64) {
        (u32::MAX, Some(fields)) => fields.u64(),
        (u32::MAX, None) => Err(broken(format!("the zip64 field of `{name}` is missing"))),
        (narrow, _) => Ok(narrow.into()),
    };
    // In the order of the field, which has only those that are needed.
    let length = wide(length)?;
    let packed = wide(packed)?;
    Ok((packed, length, wide(local)?))
}
