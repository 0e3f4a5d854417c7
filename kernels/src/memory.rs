//! Memory for what a kernel makes. Blocks of a megabyte and more are large pages, kept from one kernel to the next:
//! `kosmograph-caching-allocator`, which every program and library that links this crate has as its allocator.

use kosmograph_caching_allocator as _;

/// Room for `values`, none of them there yet.
pub(crate) fn reserve(values: usize) -> Vec<f32> {
    Vec::with_capacity(values)
}

/// `values` zeros, which the system makes when they are first touched.
pub(crate) fn zeros(values: usize) -> Vec<f32> {
    vec![0f32; values]
}

/// `values` that `write` writes: the zeros that it would overwrite are never made.
///
/// # Safety
/// `write` writes each of the values, and reads none that it did not write.
pub(crate) unsafe fn written_by(values: usize, write: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut room = reserve(values);
    // SAFETY: there is room for so many; every pattern of bits is a value of f32, and nobody reads what is not written.
    write(unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr(), values) });
    // SAFETY: `write` wrote them.
    unsafe { room.set_len(values) };
    room
}

/// `count` values of `scratch`, which grows if it must, from a cache line's beginning on: a vector of AVX-512 that lies across two
/// lines is two reads.
pub(crate) fn aligned(scratch: &mut Vec<f32>, count: usize) -> &mut [f32] {
    scratch.resize(scratch.len().max(count + LINE), 0.0);
    // The distance is below a line's, unless it cannot be said; then any place will do.
    let offset = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    &mut scratch[offset..][..count]
}

/// Values of a cache line.
const LINE: usize = 16;
