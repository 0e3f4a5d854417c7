//! Blocks that are parts of files.

use std::alloc::Layout;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{
    MADV_WILLNEED, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, c_void, madvise, mmap, munmap,
};

use crate::blocks::{self, PAGE};

/// Blocks at most: a process has some 65,000 mappings, and a network of SDXL's size has 1,400 large weights.
const PLACES: usize = 16384;

static PARTS: Mutex<Parts> = Mutex::new(Parts { starts: [0; PLACES], count: 0 });

/// As `PARTS.count`, for those who free a block while there are none of ours.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// No allocation may be made while this is locked.
struct Parts {
    /// Where blocks begin, the first `count`, ascending.
    starts: [usize; PLACES],
    count: usize,
}

impl Parts {
    fn find(&self, block: *mut u8) -> Result<usize, usize> {
        self.starts[..self.count].binary_search(&(block as usize))
    }

    fn set_count(&mut self, count: usize) {
        self.count = count;
        COUNT.store(count, Ordering::Release);
    }
}

fn parts() -> MutexGuard<'static, Parts> {
    // Nothing panics while it is locked.
    PARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pages that a block lies in: where they begin, and their length.
fn pages(block: *mut u8, size: usize) -> (usize, usize) {
    let within = block as usize % PAGE;
    (block as usize - within, (within + size).next_multiple_of(PAGE))
}

/// The bytes of `file` from `offset` on as a block of `layout`, where they lie as it must be aligned.
pub(crate) fn map(file: &File, offset: u64, layout: Layout) -> Option<NonNull<u8>> {
    let within = (offset % PAGE as u64) as usize;
    if !within.is_multiple_of(layout.align()) {
        return None;
    }
    let length = (within + layout.size()).next_multiple_of(PAGE);
    let begin = libc::off_t::try_from(offset - within as u64).ok()?;
    let access = PROT_READ | PROT_WRITE;
    // SAFETY: a new mapping touches nothing that is there, and a private one never changes the file.
    let start = unsafe { mmap(null_mut(), length, access, MAP_PRIVATE, file.as_raw_fd(), begin) };
    if start == MAP_FAILED {
        return None;
    }
    let block = start.cast::<u8>().wrapping_add(within);
    let mut parts = parts();
    let place = match parts.find(block) {
        Err(place) if parts.count < PLACES => place,
        _ => {
            drop(parts);
            // SAFETY: the mapping of just now, which nobody knows.
            unsafe { munmap(start, length) };
            return None;
        }
    };
    let count = parts.count;
    parts.starts.copy_within(place..count, place + 1);
    parts.starts[place] = block as usize;
    parts.set_count(count + 1);
    drop(parts);
    blocks::count_in(length);
    // The disk begins to read what will be looked at soon, in its order there.
    // SAFETY: an advice about our own mapping.
    unsafe { madvise(start, length, MADV_WILLNEED) };
    NonNull::new(block)
}

/// Whether a block is a part of a file.
pub(crate) fn has(block: *mut u8) -> bool {
    COUNT.load(Ordering::Acquire) > 0 && parts().find(block).is_ok()
}

/// Unmaps a block that is a part of a file, of which nobody knows any more; `false`, and nothing is done, where it is none.
pub(crate) fn unmap(block: *mut u8, size: usize) -> bool {
    if COUNT.load(Ordering::Acquire) == 0 {
        return false;
    }
    let mut parts = parts();
    let Ok(place) = parts.find(block) else { return false };
    let count = parts.count;
    parts.starts.copy_within(place + 1..count, place);
    parts.set_count(count - 1);
    drop(parts);
    let (start, length) = pages(block, size);
    // SAFETY: `map` made a mapping of these pages for this block alone.
    unsafe { munmap(start as *mut c_void, length) };
    blocks::count_out(length);
    true
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;
    use crate::blocks::tests::{alone, figures};
    use crate::vec_of_file;

    const MEGABYTE: usize = 1 << 20;

    /// A file of the numbers from 0 on, after `before` bytes.
    fn numbers(before: usize, count: u32) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..count).flat_map(u32::to_le_bytes).collect();
        file.write_all(&vec![0xff; before]).and_then(|()| file.write_all(&bytes)).expect("room");
        file
    }

    fn read(file: &File, offset: u64, count: usize) -> Option<Vec<u32>> {
        // SAFETY: any bits are a number; nobody else has the file, and it stays as it is.
        unsafe { vec_of_file(file, offset, count) }
    }

    #[test]
    fn a_part_of_a_file_is_a_vector() {
        alone(|| {
            let (before, ..) = figures();
            let count = 3 * MEGABYTE as u32 / 4;
            for head in [0, 8, 4096, 4100] {
                let file = numbers(head, count);
                let vec = read(&file, head as u64, count as usize).expect("it is large");
                drop(file);
                assert!(vec.iter().copied().eq(0..count));
                assert!(figures().0 >= before + 3 * MEGABYTE);
                drop(vec);
                assert_eq!(figures(), (before, 0, figures().2));
            }
        });
    }

    #[test]
    fn what_is_small_or_lies_askew_is_to_be_copied() {
        alone(|| {
            let file = numbers(2, MEGABYTE as u32);
            assert_eq!(read(&file, 2, MEGABYTE), None);
            assert_eq!(read(&file, 4, 1000), None);
            assert_eq!(COUNT.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn what_is_written_to_it_and_how_long_it_gets_is_its_own() {
        alone(|| {
            let (before, ..) = figures();
            let count = MEGABYTE;
            let mut file = numbers(8, count as u32);
            let mut vec = read(&file, 8, count).expect("it is large");
            let mut shorter = read(&file, 8, count).expect("it is large");
            vec[7] = 70;
            vec.extend(0..5);
            assert_eq!((vec.len(), vec[6], vec[7], vec[count + 4]), (count + 5, 6, 70, 4));
            shorter.truncate(1000);
            shorter.shrink_to_fit();
            assert!(shorter.iter().copied().eq(0..1000));
            assert_eq!(COUNT.load(Ordering::Relaxed), 0);
            file.seek(SeekFrom::Start(0)).expect("a place");
            assert!(
                read(&file, 8, count).expect("it is large").iter().copied().eq(0..count as u32)
            );
            drop((vec, shorter));
            assert_eq!(figures().0, before);
        });
    }
}
