//! Blocks, and those that are kept: parts of mappings, of which the next that fits is the best.
//!
//! A freed block is joined to its kept neighbours, and who asks for less than a block has gets its beginning and leaves the rest. So an
//! activation of one size is made where several of others were, and a network that has run once needs no new page.

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

/// What is kept may lift the peak by this part of it. At the peak itself what is kept and does not fit goes, the oldest first, which is
/// what the next pass asks for last: without room to spare the system would write zeros to it again (kernels/README.md).
const SLACK: usize = 32;

/// The same where all is kept, or [`LEAST_SLACK_OF_ALL`] bytes.
const SLACK_OF_ALL: usize = 8;
const LEAST_SLACK_OF_ALL: usize = 256 << 20;

/// Free bytes at a heap's end that the C library keeps.
const KEPT_SMALL: usize = 64 << 20;

/// The large pages of x86-64, and of most of ARM.
const LARGE_PAGE: usize = 2 << 20;

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    blocks: [Block { start: 0, length: 0 }; PLACES],
    count: 0,
    bytes: 0,
    used: 0,
    most_used: 0,
    unlimited: 0,
    has_begun: false,
});

/// Whole pages, of one mapping or of several side by side.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    length: usize,
}

impl Block {
    fn end(self) -> usize {
        self.start + self.length
    }
}

/// No allocation may be made while this is locked.
struct Kept {
    /// The first `count`, no two side by side, the one that was freed or grew first before the others.
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

    /// Keeps a block as the newest, and as one with its neighbours.
    fn put(&mut self, block: Block) {
        let mut block = block;
        for _ in 0..2 {
            let beside = |other: &Block| other.end() == block.start || block.end() == other.start;
            if let Some(at) = self.blocks[..self.count].iter().position(beside) {
                let other = self.remove(at);
                let start = block.start.min(other.start);
                block = Block { start, length: block.length + other.length };
            }
        }
        if self.count == PLACES {
            unmap(self.remove(0));
        }
        self.blocks[self.count] = block;
        self.count += 1;
        self.bytes += block.length;
    }

    /// The beginning of the smallest kept block that is long enough, of those the newest: the caches know it best.
    fn take(&mut self, length: usize) -> Option<Block> {
        let fits = |(at, block): (usize, &Block)| {
            (block.length >= length).then_some((block.length, usize::MAX - at))
        };
        let (_, from_last) = self.blocks[..self.count].iter().enumerate().filter_map(fits).min()?;
        let at = usize::MAX - from_last;
        let start = self.blocks[at].start;
        match self.blocks[at].length - length {
            0 => {
                self.remove(at);
            }
            rest => {
                self.blocks[at] = Block { start: start + length, length: rest };
                self.bytes -= length;
            }
        }
        Some(Block { start, length })
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
            _ => self.most_used + (self.most_used / SLACK_OF_ALL).max(LEAST_SLACK_OF_ALL),
        };
        while self.count > 0 {
            let over = (self.used + self.bytes).saturating_sub(together);
            let over = over.max(self.bytes.saturating_sub(most));
            if over == 0 {
                return;
            }
            // Of the oldest as much as has to go, in whole large pages.
            let oldest = self.blocks[0];
            let end = oldest.end().saturating_sub(over) / LARGE_PAGE * LARGE_PAGE;
            if end <= oldest.start {
                unmap(self.remove(0));
                continue;
            }
            self.blocks[0].length = end - oldest.start;
            self.bytes -= oldest.end() - end;
            unmap(Block { start: end, length: oldest.end() - end });
        }
    }
}

fn kept() -> MutexGuard<'static, Kept> {
    // Nothing panics while it is locked.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The length of a block of `size` bytes, which is at most isize::MAX.
fn pages(size: usize) -> usize {
    size.next_multiple_of(PAGE)
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

/// A block of what is kept.
fn again(length: usize) -> Option<*mut u8> {
    let mut kept = kept();
    let block = kept.take(length)?;
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

/// Frees a block, and keeps it for the next where that is allowed.
///
/// # Safety
/// The block came from here with this size, and nobody uses it any more.
pub(crate) unsafe fn keep(block: *mut u8, size: usize) {
    let block = Block { start: block as usize, length: pages(size) };
    let mut kept = kept();
    kept.used -= block.length;
    kept.put(block);
    kept.make_room(0);
}

/// A block of another size that begins as this one; null, and the old one stays, where there is none.
///
/// # Safety
/// As [`keep`]; the block that is returned takes its place.
pub(crate) unsafe fn resize(block: *mut u8, old_size: usize, new_size: usize) -> *mut u8 {
    let (old, new) = (pages(old_size), pages(new_size));
    if new <= old {
        if new < old {
            let mut kept = kept();
            kept.used -= old - new;
            kept.put(Block { start: block as usize + new, length: old - new });
            kept.make_room(0);
        }
        return block;
    }
    // SAFETY: whole pages, of which nobody else knows.
    let moved = unsafe { mremap(block.cast(), old, new, MREMAP_MAYMOVE) };
    if moved != MAP_FAILED {
        let mut kept = kept();
        kept.used -= old;
        kept.make_room(new);
        return moved.cast();
    }
    // A block may lie across two mappings, which the system does not move as one.
    let copy = take(new_size);
    if !copy.is_null() {
        // SAFETY: two blocks, each at least as long as that; the old one is the caller's, who gives it up.
        unsafe {
            std::ptr::copy_nonoverlapping(block, copy, old_size);
            keep(block, old_size);
        }
    }
    copy
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

/// A new mapping that begins at a large page: with small ones much of a kernel's time goes into their faults. What is no whole
/// large page at its end has small ones, and so has a system without large ones.
fn map(length: usize) -> *mut u8 {
    let Some(with_room) = length.checked_add(LARGE_PAGE - PAGE) else { return null_mut() };
    // SAFETY: a new mapping touches nothing that is there.
    let start = unsafe {
        mmap(null_mut(), with_room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    };
    if start == MAP_FAILED {
        return null_mut();
    }
    let first = start as usize;
    let begin = first.next_multiple_of(LARGE_PAGE);
    let (end, last) = (begin + length, first + with_room);
    if begin > first {
        unmap(Block { start: first, length: begin - first });
    }
    if last > end {
        unmap(Block { start: end, length: last - end });
    }
    // SAFETY: the advice changes how our own mapping is paged and not what is in it.
    unsafe { madvise(begin as *mut c_void, length, MADV_HUGEPAGE) };
    begin as *mut u8
}

fn unmap(block: Block) {
    // SAFETY: whole pages of our mappings, which nobody uses.
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
    fn a_freed_block_is_the_next_that_fits() {
        alone(|| {
            let first = vec![1u8; 3 * MEGABYTE];
            let at = first.as_ptr();
            drop(first);
            assert_eq!(figures().1, 3 * MEGABYTE);
            let zeros = vec![0u8; 3 * MEGABYTE];
            assert!(zeros.as_ptr() == at && zeros.iter().all(|byte| *byte == 0));
            drop(zeros);
            // Parts of it, which become one again.
            let part = vec![2u8; 2 * MEGABYTE];
            let rest = vec![3u8; MEGABYTE];
            assert_eq!((part.as_ptr(), rest.as_ptr()), (at, at.wrapping_add(2 * MEGABYTE)));
            assert!(part.iter().all(|byte| *byte == 2) && rest.iter().all(|byte| *byte == 3));
            drop(part);
            assert_eq!(kept().count, 1);
            drop(rest);
            assert_eq!(kept().count, 1);
            assert_eq!(figures().1, 3 * MEGABYTE);
            let whole = vec![4u8; 3 * MEGABYTE];
            assert_eq!(whole.as_ptr(), at);
            drop(whole);
            release();
            assert_eq!(figures().1, 0);
        });
    }

    #[test]
    fn a_block_across_two_mappings_grows() {
        alone(|| {
            let mut block = vec![5u8; 9 * MEGABYTE];
            // SAFETY: whole pages of the block, of which a fork would not get a copy; nobody forks.
            let parted =
                unsafe { madvise(block.as_mut_ptr().cast(), 4 * MEGABYTE, libc::MADV_DONTFORK) };
            assert_eq!(parted, 0);
            block.resize(40 * MEGABYTE, 6);
            assert!(block[..9 * MEGABYTE].iter().all(|byte| *byte == 5));
            assert!(block[9 * MEGABYTE..].iter().all(|byte| *byte == 6));
        });
    }

    #[test]
    fn what_is_kept_lifts_the_peak_by_little() {
        alone(|| {
            let (before, ..) = figures();
            let blocks: Vec<Vec<u8>> = (0..4).map(|_| Vec::with_capacity(8 * MEGABYTE)).collect();
            drop(blocks);
            assert_eq!(figures(), (before, 32 * MEGABYTE, before + 32 * MEGABYTE));
            // Another size is made of them.
            let other: Vec<u8> = Vec::with_capacity(10 * MEGABYTE);
            assert_eq!(figures(), (before + 10 * MEGABYTE, 22 * MEGABYTE, before + 32 * MEGABYTE));
            // One that is not there is new, and what would be too many goes.
            let large: Vec<u8> = Vec::with_capacity(24 * MEGABYTE);
            let (used, kept, most) = figures();
            assert_eq!(used, before + 34 * MEGABYTE);
            assert!(kept <= most / SLACK, "{kept}");
            drop((other, large));
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
                (0..3 * PLACES).map(|_| Vec::with_capacity(MEGABYTE)).collect();
            // Every second one, so that no two are side by side.
            let (every_second, others): (Vec<_>, Vec<_>) = {
                let mut small = small;
                small.sort_by_key(|block| block.as_ptr());
                let (a, b): (Vec<_>, Vec<_>) =
                    small.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
                (a, b)
            };
            drop(every_second);
            assert_eq!(kept().count, PLACES);
            drop(others);
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
