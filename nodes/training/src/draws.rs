//! Chance that hangs on nothing but a seed and a number, so that a training that goes on draws what it would have.

/// Numbers from a seed and the number of what they are drawn for (splitmix64: Steele et al., OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Draws(u64);

impl Draws {
    pub fn new(seed: u64, number: u64) -> Draws {
        let mut draws = Draws(seed);
        let mixed = draws.next_u64() ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Draws(mixed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    pub fn share(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In 0..`end`; 0 where that is empty.
    pub fn below(&mut self, end: usize) -> usize {
        // The product's upper half: even but for one part in 2⁶⁴ / end.
        ((u128::from(self.next_u64()) * end as u128) >> 64) as usize
    }

    /// Puts `values` into an order of chance (Fisher and Yates).
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_the_same_for_the_same_numbers_and_even() {
        let sum = |seed, number| {
            let mut draws = Draws::new(seed, number);
            (0..1000).map(|_| draws.share()).sum::<f64>()
        };
        assert_eq!(sum(1, 2), sum(1, 2));
        assert!(sum(1, 2) != sum(1, 3) && sum(1, 2) != sum(2, 2));
        assert!((sum(5, 5) - 500.0).abs() < 40.0);
        let mut counts = [0; 3];
        let mut draws = Draws::new(0, 0);
        (0..3000).for_each(|_| counts[draws.below(3)] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
