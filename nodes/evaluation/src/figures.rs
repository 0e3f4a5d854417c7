//! Features to figures.

use std::collections::BTreeMap;

use kosmograph_models::measures::{score, similarity};
use serde_json::{Value, json};

/// The figures of a picture, and what a table calls them. Those against the one input picture are as the authors of
/// Kosmos-G measure; pairwise ones, against all real pictures, as those of DreamBooth do.
pub const NAMES: [(&str, &str); 5] = [
    ("dino", "DINO"),
    ("clip_i", "CLIP-I"),
    ("clip_t", "CLIP-T"),
    ("dino_pairwise", "DINO pairwise"),
    ("clip_i_pairwise", "CLIP-I pairwise"),
];

/// Figures by name: 100 · cos each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(BTreeMap<&'static str, f64>);

impl Figures {
    pub fn set(&mut self, name: &'static str, value: f64) {
        self.0.insert(name, value);
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The mean of each figure over those that have it, floored at 0.
    pub fn mean<'a>(all: impl Iterator<Item = &'a Figures>) -> Figures {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for figures in all {
            for (name, value) in &figures.0 {
                values.entry(name).or_default().push(*value);
            }
        }
        Figures(values.into_iter().map(|(name, values)| (name, score(&values))).collect())
    }

    pub fn json(&self) -> Value {
        let mut told = json!({});
        for (name, value) in &self.0 {
            told[*name] = json!(value);
        }
        told
    }
}

/// The real pictures of a subject, which drawn ones are compared with.
pub struct Against<'a> {
    input: &'a [f64],
    /// The sum of their features at length 1: a mean of cosines is the product with it.
    sum: Vec<f64>,
    count: usize,
}

impl<'a> Against<'a> {
    /// Of `features`, the picture that was drawn from being number `input`; none where there is none.
    pub fn new(features: &'a [Vec<f64>], input: usize) -> Option<Against<'a>> {
        let of_input = features.get(input)?;
        let mut sum = vec![0.0; of_input.len()];
        for features in features {
            let length = length(features);
            sum.iter_mut().zip(features).for_each(|(sum, x)| *sum += x / length);
        }
        Some(Against { input: of_input, sum, count: features.len() })
    }

    /// 100 · cos with the one input picture.
    pub fn input(&self, features: &[f64]) -> f64 {
        similarity(self.input, features)
    }

    /// The mean of 100 · cos with every real picture.
    pub fn pairwise(&self, features: &[f64]) -> f64 {
        let length = length(features);
        let dot: f64 = self.sum.iter().zip(features).map(|(sum, x)| sum * x / length).sum();
        100.0 * dot / self.count as f64
    }

    /// The mean of 100 · cos of every two of the real pictures; none of one alone.
    pub fn among_themselves(&self) -> Option<f64> {
        let count = self.count as f64;
        let squares: f64 = self.sum.iter().map(|x| x * x).sum();
        (self.count > 1).then(|| 100.0 * (squares - count) / (count * (count - 1.0)))
    }
}

fn length(features: &[f64]) -> f64 {
    features.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_over_pairs_are_those_of_the_pairs() {
        let real = vec![vec![3.0, 4.0, 0.0], vec![0.0, -2.0, 1.0], vec![1.0, 1.0, 1.0]];
        let drawn = [0.5, -1.0, 2.0];
        let against = Against::new(&real, 1).unwrap();
        assert_eq!(against.input(&drawn), similarity(&real[1], &drawn));
        let pairs: Vec<f64> = real.iter().map(|real| similarity(real, &drawn)).collect();
        let mean = pairs.iter().sum::<f64>() / 3.0;
        assert!((against.pairwise(&drawn) - mean).abs() < 1e-10);
        let among = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| similarity(&real[a], &real[b]));
        let mean = among.iter().sum::<f64>() / 3.0;
        assert!((against.among_themselves().unwrap() - mean).abs() < 1e-10);
        assert!(Against::new(&real[..1], 0).unwrap().among_themselves().is_none());
        assert!(Against::new(&[], 0).is_none());
    }

    #[test]
    fn the_mean_is_floored_and_not_each_picture() {
        let of = |value| {
            let mut figures = Figures::default();
            figures.set("dino", value);
            figures
        };
        let mean = |values: &[f64]| {
            Figures::mean(values.iter().map(|v| of(*v)).collect::<Vec<_>>().iter())
        };
        assert_eq!(mean(&[-10.0, 30.0]).get("dino"), Some(10.0));
        assert_eq!(mean(&[-10.0, 5.0]).get("dino"), Some(0.0));
        assert_eq!(mean(&[]).get("dino"), None);
    }
}
