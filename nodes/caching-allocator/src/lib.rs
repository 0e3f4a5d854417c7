//! An allocator that keeps the large blocks of one operator for the next, and whose vectors may be parts of files.
//!
//! A layer of SDXL's U-Net makes tens of megabytes and lets go of as many. The C library's allocator gives blocks above
//! 32 MB back at once and has them again, and each time the system writes zeros to every page before the first use: memory's
//! whole rate for values that nobody reads (kernels/README.md has what that costs). PyTorch keeps freed blocks on a GPU for
//! the same reason. Here a freed block of a megabyte or more is kept, joined to the free ones beside it, and given, whole or in part, to
//! the next who asks for no more than it has, which in a network is the next layer.
//!
//! What is kept lifts the peak by a thirty-second part at most: blocks in use and blocks that are kept are together no more than
//! that and what was in use at once before, nor are there more than [`MOST_KEPT`] bytes or [`PLACES`] blocks; of smaller blocks
//! the C library keeps 64 MB at the end of a heap. A training, which frees all that a pass has made and makes it anew in
//! the next, lifts both limits ([`keep_all`]), and its peak by an eighth or by 256 MB. [`release`] gives all back; a node
//! library does so at the end of each node.
//!
//! A vector may also be a part of a file ([`vec_of_file`]): weights are then used where the system has them already, instead of
//! in a copy whose every page it must first fill with zeros.

#[cfg(target_os = "linux")]
mod blocks;
#[cfg(target_os = "linux")]
mod files;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;

/// Blocks below this are the system allocator's.
const LARGE: usize = 1 << 20;

/// Bytes that are kept at most: two activations of an autoencoder's end at 1024 × 1024.
pub const MOST_KEPT: usize = 2 << 30;

/// Blocks that are kept at most: 4 GB of the smallest, where a training keeps all.
pub const PLACES: usize = 4096;

/// The allocator of every program and library that links this crate.
#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator;

struct CachingAllocator;

/// Gives back to the system what is kept.
pub fn release() {
    #[cfg(target_os = "linux")]
    blocks::release();
}

/// Keeps more than [`MOST_KEPT`] bytes as long as the answer lives.
#[must_use = "it keeps as long as it lives"]
pub fn keep_all() -> KeepAll {
    #[cfg(target_os = "linux")]
    blocks::keep_all(true);
    KeepAll(())
}

/// What [`keep_all`] answers.
#[derive(Debug)]
pub struct KeepAll(());

impl Drop for KeepAll {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        blocks::keep_all(false);
    }
}

/// `count` values that lie in `file` from the byte `offset` on, as a vector whose pages are the file's: they are read when they
/// are first looked at, are shared with all who map the file, and can be dropped and read again by the system. A page that is
/// written to becomes the vector's own, and the file stays as it is.
///
/// `None`, and a copy is to be made, where the values take less than a megabyte, where they do not lie as `T` must be aligned, or
/// where the system has no such mappings.
///
/// # Safety
/// Any bits are a `T`. The values lie within the file, and as long as the vector lives the file neither gets shorter nor
/// other bytes.
pub unsafe fn vec_of_file<T: Copy>(file: &File, offset: u64, count: usize) -> Option<Vec<T>> {
    #[cfg(target_os = "linux")]
    {
        let layout = Layout::array::<T>(count).ok().filter(|layout| is_large(*layout))?;
        let block = files::map(file, offset, layout)?;
        // SAFETY: the block has that layout and comes from this crate's allocator, which is the program's. Its bytes are values.
        Some(unsafe { Vec::from_raw_parts(block.as_ptr().cast(), count, count) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, offset, count);
        None
    }
}

/// Whether the block is one of ours: by its layout alone, so that who frees it knows as well.
fn is_large(layout: Layout) -> bool {
    cfg!(target_os = "linux") && layout.size() >= LARGE && layout.align() <= 4096
}

// SAFETY: what is not large goes to the system's allocator whole. A large block is whole pages, as many as its
// size takes, so aligned to a page, and given to nobody else before it is freed; or it is within a mapping of
// a file, aligned as it was asked to be, which `files` knows by its address.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        #[cfg(target_os = "linux")]
        if is_large(layout) {
            return blocks::take(layout.size());
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        #[cfg(target_os = "linux")]
        if is_large(layout) {
            return blocks::zeros(layout.size());
        }
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        #[cfg(target_os = "linux")]
        if is_large(layout) {
            if !files::unmap(block, layout.size()) {
                // SAFETY: by its layout it came from `blocks`, with this size, and the caller no longer uses it.
                unsafe { blocks::keep(block, layout.size()) };
            }
            return;
        }
        // SAFETY: the caller's.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's: `size`, rounded up to the alignment, is no more than isize::MAX.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(new)) {
            // SAFETY: the caller's.
            (false, false) => unsafe { System.realloc(block, layout, size) },
            #[cfg(target_os = "linux")]
            // SAFETY: as in `dealloc`; the mapping moves with what is in it.
            (true, true) if !files::has(block) => unsafe {
                blocks::resize(block, layout.size(), size)
            },
            // SAFETY: both blocks have the smaller size, and are two.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}
