//! Between values in 0..1 and the 256 levels of a file.

use rayon::prelude::*;

/// 0..1 → 0..255 as ComfyUI does it: times 255, cut to the range, and the fraction dropped. Not a number is 0.
///
/// Truncation and not rounding: a saved picture is then the same in every byte, and a level that came from a file as `level / 255`
/// comes back as itself.
pub fn to_level(value: f32) -> u8 {
    // `as` truncates, and takes NaN, which survives `clamp`, to 0.
    (255.0 * value).clamp(0.0, 255.0) as u8
}

/// 0..255 → 0..1.
pub fn from_level(level: u8) -> f32 {
    f32::from(level) / 255.0
}

/// [`to_level`] of each value.
pub fn to_levels(values: &[f32]) -> Vec<u8> {
    values.par_iter().with_min_len(1 << 14).map(|value| to_level(*value)).collect()
}

/// [`from_level`] of each level.
pub fn from_levels(levels: &[u8]) -> Vec<f32> {
    values(levels).collect()
}

/// [`from_level`] of each level, for who has a place for them.
pub fn values(levels: &[u8]) -> impl IndexedParallelIterator<Item = f32> {
    levels.par_iter().with_min_len(1 << 14).map(|level| from_level(*level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_comes_back() {
        for level in 0..=255 {
            assert_eq!(to_level(from_level(level)), level);
        }
    }

    #[test]
    fn values_are_cut_and_truncated() {
        let values = [-1.0, 0.999, 0.5, 1.0, 7.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(to_levels(&values), [0, 254, 127, 255, 255, 0, 255, 0]);
    }
}
