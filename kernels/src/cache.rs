//! The sizes of the processor's caches, where it tells them.

use std::sync::LazyLock;

/// Bytes of a core's second-level cache, as CPUID tells them; of other processors 1 MB is taken for granted.
pub(crate) fn second_level() -> usize {
    static BYTES: LazyLock<usize> = LazyLock::new(|| told().unwrap_or(1 << 20));
    *BYTES
}

#[cfg(target_arch = "x86_64")]
fn told() -> Option<usize> {
    // Intel's processors tell the second level here as AMD's do.
    let caches = raw_cpuid::CpuId::new().get_l2_l3_cache_and_tlb_info()?;
    match usize::from(caches.l2cache_size()) {
        0 => None,
        kilobytes => Some(kilobytes << 10),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn told() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_second_level_cache_is_some_kilobytes_to_some_megabytes() {
        assert!((64 << 10..=64 << 20).contains(&super::second_level()));
    }
}
