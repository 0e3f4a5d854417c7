//! Counted things that this code allocates: the one place where it counts references.
//!
//! The books (the count, the kind and how to free) stand in front of the header, at a fixed distance, so
//! that one `retain` and one `release` serve every kind. Their addresses are also how whoever links this
//! crate recognises what it made itself: the host and every library have a copy of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use kosmograph_abi as abi;

/// How many counted things of this copy are alive. The conformance test reads it to find what a library
/// took from the context and never gave back.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// How many counted things that this copy of the crate allocated are alive in this process.
pub fn alive() -> usize {
    ALIVE.load(Ordering::Relaxed)
}

struct Functions {
    retain: unsafe extern "C" fn(*mut abi::Counted),
    release: unsafe extern "C" fn(*mut abi::Counted),
}

/// In a static, whose contents are the same wherever they are read: the compiler may make several copies
/// of a function, with an address each.
static FUNCTIONS: Functions = Functions { retain, release };

/// A struct of the boundary that begins with [`abi::Counted`], and what keeps alive whatever it
/// points at.
///
/// # Safety
/// `Self` is `repr(C)`, its first field is an [`abi::Counted`], and no other type has the same kind.
pub(crate) unsafe trait Header: Sized + 'static {
    const KIND: abi::Kind;
    type Owner: Send + Sync + 'static;
}

#[repr(C)]
struct Books {
    count: AtomicUsize,
    free: unsafe fn(*mut Books),
    kind: abi::Kind,
    _reserved: u32,
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
pub(crate) fn base<H: Header>() -> abi::Counted {
    let Functions { retain, release } = FUNCTIONS;
    abi::Counted { size: size_of::<H>() as u32, reserved: 0, retain, release }
}

/// Allocates with one reference, which passes to the caller.
pub(crate) fn allocate<H: Header>(header: H, owner: H::Owner) -> *mut H {
    const { assert!(align_of::<H>() == 8 && std::mem::offset_of!(Allocated<H>, header) == DISTANCE) }
    let books = Books { count: AtomicUsize::new(1), free: free::<H>, kind: H::KIND, _reserved: 0 };
    ALIVE.fetch_add(1, Ordering::Relaxed);
    let allocated = Box::into_raw(Box::new(Allocated { books, header, owner }));
    // SAFETY: the header lies DISTANCE bytes into the allocation.
    unsafe { allocated.cast::<u8>().add(DISTANCE).cast() }
}

/// The books of a counted thing that was allocated here; `None` for somebody else's.
///
/// # Safety
/// `counted` is alive for `'a` and begins with a readable [`abi::Counted`], whose functions are not NULL.
unsafe fn ours<'a>(counted: *const abi::Counted) -> Option<&'a Books> {
    // SAFETY: the caller's promise.
    let is_ours = std::ptr::fn_addr_eq(unsafe { (*counted).release }, FUNCTIONS.release);
    // SAFETY: a header with this `release` was made by `allocate`.
    is_ours.then(|| unsafe { &*books(counted.cast_mut()) })
}

/// What a counted thing was made as, if it was made here.
///
/// # Safety
/// As for [`ours`].
pub(crate) unsafe fn kind(counted: *const abi::Counted) -> Option<abi::Kind> {
    // SAFETY: the caller's promise.
    unsafe { ours(counted) }.map(|books| books.kind)
}

/// How many references there are to a counted thing, if it was made here.
///
/// # Safety
/// As for [`ours`].
pub(crate) unsafe fn references(counted: *const abi::Counted) -> Option<usize> {
    // SAFETY: the caller's promise.
    unsafe { ours(counted) }.map(|books| books.count.load(Ordering::Acquire))
}

/// What keeps alive the things that a header points at, if it was made here.
///
/// # Safety
/// As for [`ours`].
pub(crate) unsafe fn owner<'a, H: Header>(header: *const H) -> Option<&'a H::Owner> {
    // SAFETY: the caller's promise.
    let books = unsafe { ours(header.cast()) }?;
    // SAFETY: made by `allocate`, and by kind it was `allocate::<H>`, whose first field the books are.
    (books.kind == H::KIND).then(|| unsafe {
        let allocated = self::books(header.cast_mut().cast()).cast::<Allocated<H>>();
        &(*allocated).owner
    })
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
    // SAFETY: made by `Box::into_raw` in `allocate::<H>`, whose first field the books are.
    let allocated = unsafe { Box::from_raw(books.cast::<Allocated<H>>()) };
    // An owner that panics when dropped must not unwind into whoever releases.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(allocated)));
}
