//! Memory for what a kernel makes.

/// Below this the pages' faults cost nothing beside the work.
const LARGE: usize = 1 << 20;

/// Room for `values`, none of them there yet.
pub(crate) fn reserve(values: usize) -> Vec<f32> {
    let mut room = Vec::with_capacity(values);
    ask_for_huge_pages(&mut room);
    room
}

/// `values` zeros, which the system makes when they are first touched.
pub(crate) fn zeros(values: usize) -> Vec<f32> {
    let mut zeros = vec![0f32; values];
    ask_for_huge_pages(&mut zeros);
    zeros
}

/// Asks the system for large pages under what `values` has room for. Activations of many megabytes, or the
/// layers of a LoRA, were not there a moment ago, and with small pages much of a kernel's time goes into their
/// faults. A system that has none gives small ones; nothing else changes.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(values: &mut Vec<f32>) {
    const PAGE: usize = 2 << 20;
    if values.capacity() < LARGE {
        return;
    }
    let first = values.as_mut_ptr() as usize;
    let start = first.next_multiple_of(PAGE);
    let end = (first + values.capacity() * size_of::<f32>()) / PAGE * PAGE;
    if start < end {
        // SAFETY: the range lies within the vector's own memory, which is borrowed alone; the advice changes
        // how it is paged and not what is in it, so its failure does not matter.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_values: &mut Vec<f32>) {}
