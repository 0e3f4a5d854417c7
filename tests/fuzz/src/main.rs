//! The targets under libFuzzer. KOSMOGRAPH_FUZZ_TARGET says which; the arguments are libFuzzer's. `scripts/fuzz` knows
//! them.
#![no_main]

use std::sync::OnceLock;

use kosmograph_fuzz::{Target, is_json, mutate, target};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

struct Chosen {
    target: Target,
    is_json: bool,
}

fn chosen() -> &'static Chosen {
    static CHOSEN: OnceLock<Chosen> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("KOSMOGRAPH_FUZZ_TARGET").unwrap_or_default();
        let target = target(&name).unwrap_or_else(|| panic!("KOSMOGRAPH_FUZZ_TARGET is {name:?}"));
        Chosen { target, is_json: is_json(&name) }
    })
}

fuzz_target!(|data: &[u8]| (chosen().target)(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // JSON as JSON three times of four: most single bytes of it only make it no JSON.
    if chosen().is_json && !seed.is_multiple_of(4) {
        if let Some(changed) = mutate::json(&data[..size], seed, max_size) {
            data[..changed.len()].copy_from_slice(&changed);
            return changed.len();
        }
    }
    fuzzer_mutate(data, size, max_size)
});
