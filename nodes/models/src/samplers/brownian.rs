//! A Brownian motion over noise levels that a seed alone determines, whatever is asked of it and in what
//! order: a dyadic tree of bridges, each with a random seed of its own (Gaines & Lyons 1997; Li et al.,
//! arXiv 2001.01328, section 4).
//!
//! The numbers are those of torchsde's `BrownianTree`, as k-diffusion and ComfyUI use it: levels are
//! rounded to six decimals, and a node's seed is a word of numpy's `SeedSequence` (M. O'Neill's
//! `seed_seq_fe`) over the seed, the node's place and its depth.

use crate::samplers::randn::Generator;

/// The motion W over [low, high], `count` independent values.
pub struct BrownianTree {
    low: f64,
    high: f64,
    count: usize,
    seed: u64,
    whole: Vec<f32>,
}

/// A node of the tree with the increment over it.
struct Node {
    start: f64,
    end: f64,
    /// Its place among the nodes of its depth, from the left.
    place: u64,
    depth: u32,
    increment: Vec<f32>,
}

impl BrownianTree {
    /// Over the interval from the lowest σ above 0 to the highest, as k-diffusion takes it.
    pub fn over(sigmas: &[f64], count: usize, seed: u64) -> Self {
        let positive = sigmas.iter().copied().filter(|sigma| *sigma > 0.0);
        let (low, high) = positive
            .fold((f64::INFINITY, 0f64), |(low, high), sigma| (low.min(sigma), high.max(sigma)));
        match low <= high && high.is_finite() {
            true => Self::new(low, high, count, seed),
            // No interval, so nothing will be asked of it.
            false => Self::new(0.0, 0.0, 0, seed),
        }
    }

    /// `count` values over [low, high], `low` ≤ `high`.
    pub fn new(low: f64, high: f64, count: usize, seed: u64) -> Self {
        let (low, high) = (f64::from(low as f32), f64::from(high as f32));
        let scale = (high - low).sqrt() as f32;
        let root = seed_sequence(seed, None);
        let whole = randn(root, count).into_iter().map(|value| value * scale).collect();
        Self { low: round(low), high: round(high), count, seed, whole }
    }

    /// W(next) - W(sigma), over the root of the distance: unit variance. Levels outside the interval are
    /// read as its ends.
    pub fn between(&self, sigma: f64, next: f64) -> Vec<f32> {
        let (sigma, next) = (sigma as f32, next as f32);
        let within = |level: f32| round(f64::from(level).clamp(self.low, self.high));
        let (from, to) = (within(sigma.min(next)), within(sigma.max(next)));
        let mut sum: Option<Vec<f32>> = None;
        if from < to {
            let root = Node {
                start: self.low,
                end: self.high,
                place: 0,
                depth: 0,
                increment: self.whole.clone(),
            };
            self.add(root, from, to, &mut sum);
        }
        let distance = (next - sigma).abs().sqrt();
        let sign = if next < sigma { -1.0 } else { 1.0 };
        let sum = sum.unwrap_or_else(|| vec![0.0; self.count]);
        sum.into_iter().map(|value| value * sign / distance).collect()
    }

    /// Adds the increments of the nodes that make up [from, to] within `node`, from the left.
    fn add(&self, node: Node, from: f64, to: f64, sum: &mut Option<Vec<f32>>) {
        let middle = round(0.5 * (node.end + node.start));
        // At the rounding's grain there is nothing to cut.
        let whole = from <= node.start && to >= node.end;
        if whole || middle <= node.start || middle >= node.end {
            match sum {
                None => *sum = Some(node.increment),
                Some(sum) => sum.iter_mut().zip(&node.increment).for_each(|(s, w)| *s += w),
            }
            return;
        }
        let (left, right) = self.halves(node, middle);
        if from < middle {
            self.add(left, from, to.min(middle), sum);
        }
        if to > middle {
            self.add(right, from.max(middle), to, sum);
        }
    }

    /// Both halves of a node, by a Brownian bridge.
    fn halves(&self, node: Node, middle: f64) -> (Node, Node) {
        let (before, after) = (middle - node.start, node.end - middle);
        let share = 1.0 / (node.end - node.start);
        let deviation = (before * after * share).sqrt() as f32;
        let (before, share) = (before as f32, share as f32);
        let noise = randn(seed_sequence(self.seed, Some((node.place, node.depth))), self.count);
        let bridge = |(whole, noise): (&f32, &f32)| before * whole * share + deviation * noise;
        let left: Vec<f32> = node.increment.iter().zip(&noise).map(bridge).collect();
        let right = node.increment.iter().zip(&left).map(|(whole, left)| whole - left).collect();
        let half = |start, end, place, increment| Node {
            start,
            end,
            place,
            depth: node.depth + 1,
            increment,
        };
        (
            half(node.start, middle, node.place.wrapping_mul(2), left),
            half(middle, node.end, node.place.wrapping_mul(2) | 1, right),
        )
    }
}

fn randn(seed: u32, count: usize) -> Vec<f32> {
    Generator::new(u64::from(seed)).randn(count)
}

/// To six decimals, as Python's `round` does: the decimal nearest to the exact value, then the double
/// nearest to that.
fn round(level: f64) -> f64 {
    format!("{level:.6}").parse().unwrap_or(level)
}

/// The first word that `numpy.random.SeedSequence(seed, spawn_key, pool_size=24)` generates.
fn seed_sequence(seed: u64, spawn_key: Option<(u64, u32)>) -> u32 {
    const POOL: usize = 24;
    let words = |number: u64| {
        let high = (number >> 32) as u32;
        std::iter::once(number as u32).chain((high != 0).then_some(high))
    };
    let mut entropy: Vec<u32> = words(seed).collect();
    if let Some((place, depth)) = spawn_key {
        entropy.resize(POOL, 0);
        entropy.extend(words(place).chain([depth]));
    }
    let mut constant = 0x43b0_d7e5u32;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    };
    let mix = |x: u32, y: u32| {
        let mixed = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ (mixed >> 16)
    };
    let mut pool = [0u32; POOL];
    for (i, word) in pool.iter_mut().enumerate() {
        *word = hash(entropy.get(i).copied().unwrap_or(0));
    }
    for from in 0..POOL {
        for to in 0..POOL {
            if from != to {
                pool[to] = mix(pool[to], hash(pool[from]));
            }
        }
    }
    for word in entropy.iter().skip(POOL) {
        for slot in &mut pool {
            *slot = mix(*slot, hash(*word));
        }
    }
    let constant = 0x8b51_f9ddu32;
    let value = (pool[0] ^ constant).wrapping_mul(constant.wrapping_mul(0x58f3_8ded));
    value ^ (value >> 16)
}
