//! Counted things that this library allocates: the one place where references are counted here.
//!
//! Every counted struct of the boundary begins with [`abi::Counted`]. [`Allocated`] puts an atomic
//! count and the owner of the memory behind it; its `retain` and `release` are the same two functions
//! for all things of one kind, which is also how this library recognises its own.

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use kosmograph_abi as abi;

/// The two functions that count references to one kind of thing.
pub(crate) struct Functions {
    retain: unsafe extern "C" fn(*mut abi::Counted),
    release: unsafe extern "C" fn(*mut abi::Counted),
}

/// A struct of the boundary that begins with [`abi::Counted`].
///
/// # Safety
/// `Self` is `repr(C)` and its first field is an [`abi::Counted`].
pub(crate) unsafe trait Header: Sized + 'static {
    /// In a static, whose contents are the same wherever they are read: the compiler may make several
    /// copies of a generic function, with an address each.
    fn functions() -> &'static Functions;
}

macro_rules! header {
    ($($type:ty),+) => {$(
        // SAFETY: begins with `base: Counted` and is repr(C), as the abi crate declares it.
        unsafe impl Header for $type {
            fn functions() -> &'static Functions {
                static FUNCTIONS: Functions =
                    Functions { retain: retain::<$type>, release: release::<$type> };
                &FUNCTIONS
            }
        }
    )+};
}
header!(abi::KgString, abi::List, abi::Map, abi::Tensor, abi::Object);

/// `header` is what the boundary sees; `owner` keeps alive whatever the header points at.
#[repr(C)]
pub(crate) struct Allocated<H: Header> {
    pub header: H,
    count: AtomicUsize,
    pub owner: Box<dyn Any + Send + Sync>,
}

impl<H: Header> Allocated<H> {
    /// The `base` of a new header of this type.
    pub fn base() -> abi::Counted {
        abi::Counted {
            size: size_of::<H>() as u32,
            reserved: 0,
            retain: H::functions().retain,
            release: H::functions().release,
        }
    }

    /// Allocates with one reference, which passes to the caller.
    pub fn allocate(header: H, owner: Box<dyn Any + Send + Sync>) -> *mut H {
        let allocated = Self { header, count: AtomicUsize::new(1), owner };
        Box::into_raw(Box::new(allocated)).cast()
    }

    /// The allocation behind a header, if this library made it.
    ///
    /// # Safety
    /// `header` is a valid pointer of the boundary, alive for `'a`.
    pub unsafe fn recognise<'a>(header: *const H) -> Option<&'a Self> {
        // SAFETY: every H begins with a Counted.
        let base = unsafe { &*header.cast::<abi::Counted>() };
        let ours = H::functions().release;
        // Only `allocate` above makes headers with this function.
        // SAFETY: so the memory behind the header is an `Allocated<H>`.
        std::ptr::fn_addr_eq(base.release, ours).then(|| unsafe { &*header.cast::<Self>() })
    }
}

unsafe extern "C" fn retain<H: Header>(counted: *mut abi::Counted) {
    // SAFETY: only reachable through a header made by `Allocated::<H>::allocate`, still referenced.
    let allocated = unsafe { &*counted.cast::<Allocated<H>>() };
    allocated.count.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn release<H: Header>(counted: *mut abi::Counted) {
    // SAFETY: as in `retain`; the caller gives up one reference.
    let allocated = unsafe { &*counted.cast::<Allocated<H>>() };
    if allocated.count.fetch_sub(1, Ordering::Release) != 1 {
        return;
    }
    fence(Ordering::Acquire);
    // SAFETY: that was the last reference, and the memory came from `Box::into_raw`.
    let allocated = unsafe { Box::from_raw(counted.cast::<Allocated<H>>()) };
    // An owner that panics when dropped must not unwind into the caller.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(allocated)));
}
