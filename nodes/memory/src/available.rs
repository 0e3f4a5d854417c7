//! How much memory this process may still take.

use std::fmt;

use crate::Amount;

/// What there is, and what bounds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    pub bytes: u64,
    bound: Bound,
}

/// Whose limit is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Machine,
    Cgroup,
    AddressSpace,
    Data,
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.bound {
            Bound::Machine => "of memory",
            Bound::Cgroup => "under the limit of its container (cgroup)",
            Bound::AddressSpace => "under the limit on its address space (ulimit -v)",
            Bound::Data => "under the limit on its private memory (--memory-limit, ulimit -d)",
        };
        write!(f, "{} {whose}", Amount(self.bytes.into()))
    }
}

/// A part of it is left alone, at most this much: for what nobody asks for, and for the others on the machine.
const RESERVE: u64 = 256 << 20;

impl Available {
    pub(crate) fn new(bytes: u64, bound: Bound) -> Self {
        Self { bytes: bytes - RESERVE.min(bytes / 16), bound }
    }
}

/// What this process may still take before the machine, its cgroups or its own limits refuse it, less a reserve of a
/// sixteenth, at most 256 MiB. `None` where nobody says.
pub fn available() -> Option<Available> {
    let bounds = bounds().into_iter().flatten();
    bounds.min_by_key(|available| available.bytes)
}

#[cfg(target_os = "linux")]
fn bounds() -> [Option<Available>; 5] {
    use crate::cgroup;

    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = machine(&read("/proc/meminfo"));
    let strict = read("/proc/sys/vm/overcommit_memory").trim() == "2";
    let committed = strict.then(|| uncommitted(&read("/proc/meminfo"))).flatten();
    let status = read("/proc/self/status");
    let own = |resource, line| Some(limit(resource)?.saturating_sub(kilobytes(&status, line)?));
    [
        machine.map(|bytes| Available::new(bytes, Bound::Machine)),
        committed.map(|bytes| Available::new(bytes, Bound::Machine)),
        cgroup::available().map(|bytes| Available::new(bytes, Bound::Cgroup)),
        own(libc::RLIMIT_AS as _, "VmSize:")
            .map(|bytes| Available::new(bytes, Bound::AddressSpace)),
        own(libc::RLIMIT_DATA as _, "VmData:").map(|bytes| Available::new(bytes, Bound::Data)),
    ]
}

/// Elsewhere all of the machine's memory is the bound: it at least catches what can never be.
#[cfg(all(unix, not(target_os = "linux")))]
fn bounds() -> [Option<Available>; 1] {
    // SAFETY: asks for a number.
    let (pages, size) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let bytes = u64::try_from(pages).ok().zip(u64::try_from(size).ok());
    [bytes.map(|(pages, size)| Available::new(pages.saturating_mul(size), Bound::Machine))]
}

#[cfg(not(unix))]
fn bounds() -> [Option<Available>; 1] {
    [None]
}

/// The soft limit on a resource of this process, where there is one.
#[cfg(target_os = "linux")]
fn limit(resource: libc::c_uint) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is there to be written to. (The resource's type is another in musl's libc.)
    let failed = unsafe { libc::getrlimit(resource as _, &raw mut limit) };
    (failed == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Memory that the kernel can give without taking it from anyone, and what it can swap out for more.
#[cfg(target_os = "linux")]
fn machine(meminfo: &str) -> Option<u64> {
    let swap = kilobytes(meminfo, "SwapFree:").unwrap_or(0);
    Some(kilobytes(meminfo, "MemAvailable:")?.saturating_add(swap))
}

/// What may still be promised where the kernel promises no more than it has.
#[cfg(target_os = "linux")]
fn uncommitted(meminfo: &str) -> Option<u64> {
    let committed = kilobytes(meminfo, "Committed_AS:")?;
    Some(kilobytes(meminfo, "CommitLimit:")?.saturating_sub(committed))
}

/// The bytes of a line "NAME:   123 kB".
#[cfg(target_os = "linux")]
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24576000 kB\nMemFree:         1000 kB\n\
        MemAvailable:   22000000 kB\nSwapFree:        1000000 kB\n\
        CommitLimit:    12288000 kB\nCommitted_AS:    2288000 kB\n";

    #[test]
    fn meminfo_is_read() {
        assert_eq!(machine(MEMINFO), Some(23_000_000 * 1024));
        assert_eq!(uncommitted(MEMINFO), Some(10_000_000 * 1024));
        assert_eq!(machine(""), None);
        assert_eq!(machine("MemAvailable: much kB"), None);
    }

    #[test]
    fn a_reserve_is_left() {
        let available = Available::new(1 << 30, Bound::Machine);
        assert_eq!(available.bytes, (1 << 30) - (1 << 26));
        assert_eq!(Available::new(1 << 40, Bound::Data).bytes, (1 << 40) - RESERVE);
        assert_eq!(
            Available::new(0, Bound::AddressSpace).to_string(),
            "0 bytes under the limit on its address space (ulimit -v)"
        );
    }

    #[test]
    fn this_machine_has_some() {
        let available = available().expect("Linux says so");
        assert!(available.bytes > 1 << 20, "{available}");
    }
}
