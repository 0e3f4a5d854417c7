//! Blocks as mappings of their own, and those that are kept.

use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{
    MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE,
    c_void, madvise, mmap, mremap, munmap,
};

use crate::{MOST_KEPT, PLACES};

pub(crate) const PAGE: usize = 4096;

/// Zeros that are written to a kept block; more come from the system.
const MOST_ZEROS: usize = 32 << 20;

/// What is kept may lift the peak by this part of it. At the peak itself every kept block that does not fit goes, the oldest first,
/// which are those that the next pass asks for last: without room to spare it finds few of its sizes, and the system spends
/// a tenth of a U-Net's call on zeros (kernels/README.md).
const SLACK: usize = 32;

/// The same where all is kept, or [`MOST_KEPT`].
const SLACK_OF_ALL: usize = 8;

/// Free bytes at a heap's end that the C library keeps.
const KEPT_SMALL: usize = 64 << 20;

/// The largest size that shares a length with others.
const MOST_SHARED: usize = 64 << 20;

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    blocks: [Block { start: 0, length: 0 }; PLACES],
    count: 0,
    bytes: 0,
    used: 0,
    most_used: 0,
    unlimited: 0,
    has_begun: false,
});

#[derive(Clone, Copy)]
struct Block {
    start: usize,
    length: usize,
}

/// No allocation may be made while this is locked.
struct Kept {
    /// The first `count`, the one that was freed first before the others.
    blocks: [Block; PLACES],
    count: usize,
    /// Of the blocks that are kept.
    bytes: usize,
    /// Bytes that are in use, and the most that were at once.
    used: usize,
    most_used: usize,
    /// How many ask that more than [`MOST_KEPT`] be kept.
    unlimited: usize,
    /// Whether a block was ever asked for.
    has_begun: bool,
}

impl Kept {
    fn remove(&mut self, at: usize) -> Block {
        let block = self.blocks[at];
        self.blocks.copy_within(at + 1..self.count, at);
        self.count -= 1;
        self.bytes -= block.length;
        block
    }

    /// Bytes that may be kept.
    fn most(&self) -> usize {
        if self.unlimited > 0 { usize::MAX } else { MOST_KEPT }
    }

    /// Takes `more` bytes into use and gives back to the system what would otherwise lift the peak.
    fn make_room(&mut self, more: usize) {
        self.used += more;
        self.most_used = self.most_used.max(self.used);
        let most = self.most();
        let together = match self.unlimited {
            0 => self.most_used + self.most_used / SLACK,
            _ => self.most_used + (self.most_used / SLACK_OF_ALL).max(MOST_KEPT),
        };
        while self.count > 0 && (self.used + self.bytes > together || self.bytes > most) {
            unmap(self.remove(0));
        }
    }
}

fn kept() -> MutexGuard<'static, Kept> {
    // Nothing panics while it is locked.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The length of the mapping for a block of `size` bytes. Sizes within an eighth of each other share one up to
/// [`MOST_SHARED`]: batches of texts are a token longer or shorter, and what one leaves should serve the next. Pages that are
/// not touched take no memory.
fn pages(size: usize) -> usize {
    let step = match size <= MOST_SHARED {
        true => (size.next_power_of_two() / 16).max(PAGE),
        false => PAGE,
    };
    // A size is at most isize::MAX.
    size.next_multiple_of(step)
}

/// A block of `size` bytes with anything in it; null where there is none.
pub(crate) fn take(size: usize) -> *mut u8 {
    again(pages(size)).unwrap_or_else(|| fresh(size))
}

/// A block of `size` zeros; null where there is none.
pub(crate) fn zeros(size: usize) -> *mut u8 {
    // Who wants many zeros may not touch all of them, and fresh pages become zeros one by one.
    if size > MOST_ZEROS {
        return fresh(size);
    }
    match again(pages(size)) {
        Some(block) => {
            // SAFETY: the block has as many bytes, and nobody else knows of it.
            unsafe { block.write_bytes(0, size) };
            block
        }
        None => fresh(size),
    }
}

/// One of the blocks that are kept.
fn again(length: usize) -> Option<*mut u8> {
    let mut kept = kept();
    // The one that was freed last: the caches know it best.
    let at = kept.blocks[..kept.count].iter().rposition(|block| block.length == length)?;
    let block = kept.remove(at);
    kept.make_room(length);
    Some(block.start as *mut u8)
}

/// A block of `size` zeros from the system; null where there is none.
fn fresh(size: usize) -> *mut u8 {
    let length = pages(size);
    let mut kept = kept();
    let is_first = !std::mem::replace(&mut kept.has_begun, true);
    kept.make_room(length);
    drop(kept);
    if is_first {
        keep_small(KEPT_SMALL);
    }
    let block = map(length);
    if block.is_null() {
        // What is kept may be what is missing.
        let mut kept = self::kept();
        while kept.count > 0 {
            unmap(kept.remove(0));
        }
        drop(kept);
        let block = map(length);
        if block.is_null() {
            self::kept().used -= length;
        }
        return block;
    }
    block
}

/// Counts `bytes` that are in use and not kept here, parts of files: what may be kept is a part of all that is in use.
pub(crate) fn count_in(bytes: usize) {
    kept().make_room(bytes);
}

/// `bytes` that were counted in are no longer in use.
pub(crate) fn count_out(bytes: usize) {
    kept().used -= bytes;
}

/// Frees a block, and keeps it for the next of its size where that is allowed.
///
/// # Safety
/// The block came from here with this size, and nobody uses it any more.
pub(crate) unsafe fn keep(block: *mut u8, size: usize) {
    let block = Block { start: block as usize, length: pages(size) };
    let mut kept = kept();
    kept.used -= block.length;
    if block.length > kept.most() {
        drop(kept);
        return unmap(block);
    }
    if kept.count == PLACES {
        let oldest = kept.remove(0);
        unmap(oldest);
    }
    let at = kept.count;
    kept.blocks[at] = block;
    kept.count += 1;
    kept.bytes += block.length;
    kept.make_room(0);
}

/// A block of another size that begins as this one; null, and the old one stays, where there is none.
///
/// # Safety
/// As [`keep`]; the block that is returned takes its place.
pub(crate) unsafe fn resize(block: *mut u8, old: usize, new: usize) -> *mut u8 {
    let (old, new) = (pages(old), pages(new));
    if old == new {
        return block;
    }
    // SAFETY: a mapping of that length, of which nobody else knows.
    let moved = unsafe { mremap(block.cast(), old, new, MREMAP_MAYMOVE) };
    if moved == MAP_FAILED {
        return null_mut();
    }
    let mut kept = kept();
    kept.used -= old;
    kept.make_room(new);
    moved.cast()
}

/// Gives all that is kept back to the system; what was in use most is forgotten as well.
pub(crate) fn release() {
    let mut kept = kept();
    while kept.count > 0 {
        unmap(kept.remove(0));
    }
    kept.most_used = kept.used;
    drop(kept);
    trim();
}

/// One more, or one less, asks that more than [`MOST_KEPT`] be kept.
pub(crate) fn keep_all(more: bool) {
    let mut kept = kept();
    match more {
        true => kept.unlimited += 1,
        false => kept.unlimited -= 1,
    }
    kept.make_room(0);
    let all = kept.unlimited > 0;
    drop(kept);
    keep_small(if all { usize::MAX } else { KEPT_SMALL });
    if !all {
        trim();
    }
}

/// How many bytes that are free the C library keeps at the end of a heap, of blocks below a megabyte: by itself it gives them back
/// as soon as there are some, and has the system write zeros to the same pages for the next operator.
fn keep_small(most: usize) {
    #[cfg(target_env = "gnu")]
    {
        let most = libc::c_int::try_from(most).unwrap_or(libc::c_int::MAX);
        // SAFETY: two settings of the C library's allocator, which change no block.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, most);
            libc::mallopt(libc::M_MMAP_THRESHOLD, crate::LARGE as libc::c_int);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// Gives back what the C library keeps.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes no block that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn map(length: usize) -> *mut u8 {
    // SAFETY: a new mapping touches nothing that is there.
    let start = unsafe {
        mmap(null_mut(), length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    };
    if start == MAP_FAILED {
        return null_mut();
    }
    // With small pages much of a kernel's time goes into their faults. The parts that are no whole large page have
    // small ones, and so has a system without large pages.
    // SAFETY: the advice changes how our own mapping is paged and not what is in it.
    unsafe { madvise(start, length, MADV_HUGEPAGE) };
    start.cast()
}

fn unmap(block: Block) {
    // SAFETY: a mapping of that length which nobody uses.
    unsafe { munmap(block.start as *mut c_void, block.length) };
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, PoisonError};

    use proptest::prelude::*;

    use super::*;

    const MEGABYTE: usize = 1 << 20;

    /// The blocks are the process's, so one test at a time.
    pub(crate) fn alone<T>(test: impl FnOnce() -> T) -> T {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        release();
        test()
    }

    /// Bytes in use, kept, and the most that were in use.
    pub(crate) fn figures() -> (usize, usize, usize) {
        let kept = kept();
        (kept.used, kept.bytes, kept.most_used)
    }

    #[test]
    fn a_freed_block_is_the_next_of_its_size() {
        alone(|| {
            let first = vec![1u8; 3 * MEGABYTE];
            let at = first.as_ptr();
            drop(first);
            assert_eq!(figures().1, 3 * MEGABYTE);
            let other: Vec<u8> = Vec::with_capacity(3 * MEGABYTE + PAGE);
            assert_ne!(other.as_ptr(), at);
            drop(other);
            let second: Vec<u8> = Vec::with_capacity(3 * MEGABYTE);
            drop(second);
            let ones = vec![1u8; 3 * MEGABYTE];
            let at = ones.as_ptr();
            drop(ones);
            let zeros = vec![0u8; 3 * MEGABYTE];
            assert!(zeros.as_ptr() == at && zeros.iter().all(|byte| *byte == 0));
            drop(zeros);
            release();
            assert_eq!(figures().1, 0);
        });
    }

    #[test]
    fn what_is_kept_lifts_the_peak_by_little() {
        alone(|| {
            let (before, ..) = figures();
            let blocks: Vec<Vec<u8>> = (0..4).map(|_| Vec::with_capacity(8 * MEGABYTE)).collect();
            drop(blocks);
            assert_eq!(figures(), (before, 32 * MEGABYTE, before + 32 * MEGABYTE));
            // Another size: the oldest two go, since 10 more would be too many.
            let other: Vec<u8> = Vec::with_capacity(10 * MEGABYTE);
            assert_eq!(figures(), (before + 10 * MEGABYTE, 16 * MEGABYTE, before + 32 * MEGABYTE));
            drop(other);
        });
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        alone(|| {
            let many: Vec<Vec<u8>> = (0..40).map(|_| Vec::with_capacity(10 * MEGABYTE)).collect();
            drop(many);
            assert!(figures().1 <= MOST_KEPT, "{:?}", figures());
            let small: Vec<Vec<u8>> =
                (0..2 * PLACES).map(|_| Vec::with_capacity(MEGABYTE)).collect();
            drop(small);
            assert!(figures().1 <= MOST_KEPT);
            let _all = crate::keep_all();
            let small: Vec<Vec<u8>> =
                (0..2 * PLACES).map(|_| Vec::with_capacity(MEGABYTE)).collect();
            drop(small);
            assert_eq!(kept().count, PLACES);
        });
    }

    #[test]
    fn all_is_kept_where_that_is_wanted() {
        alone(|| {
            let (before, ..) = figures();
            let make = || (0..2).map(|_| Vec::with_capacity(MOST_KEPT)).collect::<Vec<Vec<u8>>>();
            let blocks = make();
            let places: Vec<_> = blocks.iter().map(Vec::as_ptr).collect();
            {
                let _all = crate::keep_all();
                drop(blocks);
                assert_eq!(figures(), (before, 2 * MOST_KEPT, before + 2 * MOST_KEPT));
                let again = make();
                assert!(again.iter().all(|block| places.contains(&block.as_ptr())));
            }
            assert_eq!(figures().1, MOST_KEPT);
        });
    }

    #[test]
    fn more_than_there_is_is_refused() {
        alone(|| {
            let mut room: Vec<u8> = Vec::new();
            assert!(room.try_reserve_exact(1 << 46).is_err());
            let mut room = vec![7u8; 2 * MEGABYTE];
            assert!(room.try_reserve_exact(1 << 46).is_err());
            assert!(room.iter().all(|byte| *byte == 7));
        });
    }

    #[derive(Clone, Debug)]
    enum Step {
        New(usize, bool),
        Resize(usize, usize),
        Free(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Sizes on both sides of what is large, a few of them often.
        let size = prop_oneof![Just(MEGABYTE), Just(2 * MEGABYTE), 1..3 * MEGABYTE];
        prop_oneof![
            (size.clone(), any::<bool>()).prop_map(|(size, zeros)| Step::New(size, zeros)),
            (any::<usize>(), size).prop_map(|(which, size)| Step::Resize(which, size)),
            any::<usize>().prop_map(Step::Free),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn blocks_hold_what_was_written(steps in prop::collection::vec(step(), 1..40)) {
            alone(|| {
                let (before, ..) = figures();
                let mut blocks: Vec<Vec<u8>> = Vec::new();
                let count = steps.len();
                for (mark, step) in steps.into_iter().enumerate() {
                    let mark = mark as u8 + 1;
                    match step {
                        Step::New(size, true) => {
                            let block = vec![0u8; size];
                            prop_assert!(block.iter().all(|byte| *byte == 0));
                            blocks.push(block);
                            blocks[..].last_mut().expect("it was pushed").fill(mark);
                        }
                        Step::New(size, false) => blocks.push(vec![mark; size]),
                        Step::Resize(which, size) if !blocks.is_empty() => {
                            let which = which % blocks.len();
                            let block = &mut blocks[which];
                            let mark = block[0];
                            block.resize(size, mark);
                            block.shrink_to_fit();
                        }
                        Step::Free(which) if !blocks.is_empty() => {
                            blocks.swap_remove(which % blocks.len());
                        }
                        _ => (),
                    }
                    for block in &blocks {
                        prop_assert!(block.iter().all(|byte| *byte == block[0]));
                    }
                    let (used, kept, most) = figures();
                    let most = most + most / SLACK;
                    prop_assert!(used + kept <= most, "{used} and {kept} of {most} after {count}");
                }
                drop(blocks);
                prop_assert_eq!(figures().0, before);
                Ok(())
            })?;
        }
    }
}
