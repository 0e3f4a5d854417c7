//! Counted things that the host allocates: the one place where it counts references.
//!
//! The books (the count and how to free) stand in front of the header, at a fixed distance, so that
//! one `retain` and one `release` serve every kind. Their addresses are also how the host
//! recognises what it made itself.

use std::sync::atomic::{AtomicUsize, Ordering, fence};

use kosmograph_abi as abi;

/// How many counted things of the host are alive. The conformance test reads it to find what a
/// library took from the context and never gave back.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// How many counted things of the host are alive in this process.
pub(crate) fn alive() -> usize {
    ALIVE.load(Ordering::Relaxed)
}

/// A struct of the boundary that begins with [`abi::Counted`], and what keeps alive whatever it
/// points at.
///
/// # Safety
/// `Self` is `repr(C)` and its first field is an [`abi::Counted`].
pub(super) unsafe trait Header: Sized + 'static {
    type Owner: Send + Sync + 'static;
}

#[repr(C)]
struct Books {
    count: AtomicUsize,
    free: unsafe fn(*mut Books),
}

#[repr(C)]
struct Allocated<H: Header> {
    books: Books,
    header: H,
    owner: H::Owner,
}

/// Both are multiples of eight and every header is aligned to eight, so nothing lies between them.
const DISTANCE: usize = size_of::<Books>();

/// The `base` of a header of type `H`.
pub(super) fn base<H: Header>() -> abi::Counted {
    abi::Counted { size: size_of::<H>() as u32, reserved: 0, retain, release }
}

/// Allocates with one reference, which passes to the caller.
pub(super) fn allocate<H: Header>(header: H, owner: H::Owner) -> *mut H {
    const { assert!(align_of::<H>() == 8 && std::mem::offset_of!(Allocated<H>, header) == DISTANCE) }
    let books = Books { count: AtomicUsize::new(1), free: free::<H> };
    ALIVE.fetch_add(1, Ordering::Relaxed);
    let allocated = Box::into_raw(Box::new(Allocated { books, header, owner }));
    // SAFETY: the header lies DISTANCE bytes into the allocation.
    unsafe { allocated.cast::<u8>().add(DISTANCE).cast() }
}

/// How many references there are to a counted thing, if the host made it.
///
/// # Safety
/// `counted` is alive and begins with a readable [`abi::Counted`].
pub(super) unsafe fn references(counted: *const abi::Counted) -> Option<usize> {
    let ours: unsafe extern "C" fn(*mut abi::Counted) = release;
    // SAFETY: the caller's promise.
    let is_ours = std::ptr::fn_addr_eq(unsafe { (*counted).release }, ours);
    // SAFETY: a header with this `release` was made by `allocate`.
    is_ours.then(|| unsafe { (*books(counted.cast_mut())).count.load(Ordering::Acquire) })
}

/// # Safety
/// `counted` was made by [`allocate`].
unsafe fn books(counted: *mut abi::Counted) -> *mut Books {
    // SAFETY: the caller's promise; the books lie in front of the header in the same allocation.
    unsafe { counted.cast::<u8>().sub(DISTANCE).cast() }
}

unsafe extern "C" fn retain(counted: *mut abi::Counted) {
    if counted.is_null() {
        return;
    }
    // SAFETY: only reachable through a header made by `allocate` that is still referenced (node.h).
    unsafe { (*books(counted)).count.fetch_add(1, Ordering::Relaxed) };
}

unsafe extern "C" fn release(counted: *mut abi::Counted) {
    if counted.is_null() {
        return;
    }
    // SAFETY: as in `retain`; the caller gives up one reference.
    let books = unsafe { books(counted) };
    // SAFETY: alive until the count falls to zero below.
    if unsafe { (*books).count.fetch_sub(1, Ordering::Release) } != 1 {
        return;
    }
    fence(Ordering::Acquire);
    ALIVE.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: that was the last reference.
    unsafe { ((*books).free)(books) }
}

unsafe fn free<H: Header>(books: *mut Books) {
    // SAFETY: made by `Box::into_raw` in `allocate::<H>`, whose first field the books are. Owners are
    // plain memory and values; dropping them does not unwind.
    drop(unsafe { Box::from_raw(books.cast::<Allocated<H>>()) });
}
