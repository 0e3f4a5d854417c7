//! The losses of CLIP's training (Radford et al., arXiv 2103.00020): pictures find their captions, and captions their pictures.

use candle_core::{DType, Device, Result, Tensor};
use kosmograph_kernels::bounds::smaller;

use crate::noise::cross_entropy;

/// What the scale of the similarities begins as, 1 / 0.07, and the most that it becomes; both as logarithms.
pub const SCALE: [f64; 2] = [2.659_260_036_932_778, 4.605_170_185_988_092];

/// e to `logit_scale`, a scalar, of which what is above a hundred counts as a hundred.
///
/// # Errors
/// Only what the tensor library reports.
pub fn scale(logit_scale: &Tensor) -> Result<Tensor> {
    let most = Tensor::new(SCALE[1] as f32, &Device::Cpu)?;
    smaller(logit_scale, &most)?.exp()
}

/// Half the cross entropy of each picture's caption among all captions, and half that of each caption's picture; a scalar.
/// `pictures` and `captions` [B, C] are of length one, row by row of the same document.
///
/// # Errors
/// The shapes do not fit each other.
pub fn both_ways(pictures: &Tensor, captions: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let count = pictures.dim(0)?;
    let logits = pictures.matmul(&captions.t()?.contiguous()?)?.broadcast_mul(scale)?;
    let same: Vec<i64> = (0..count as i64).collect();
    let (captions, _) = cross_entropy(&logits, &same, 0.0)?;
    let (pictures, _) = cross_entropy(&logits.t()?.contiguous()?, &same, 0.0)?;
    (captions + pictures)? / (2 * count.max(1)) as f64
}

/// Cross entropy of the first of each picture's own texts, [B, K, C] of length one, among the K; the mean over the pictures
/// [B, C]; a scalar.
///
/// # Errors
/// The shapes do not fit each other.
pub fn first_of(pictures: &Tensor, texts: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let count = pictures.dim(0)?;
    let near = texts.broadcast_mul(&pictures.unsqueeze(1)?)?.sum(2)?.broadcast_mul(scale)?;
    let (sum, _) = cross_entropy(&near.to_dtype(DType::F32)?, &vec![0; count], 0.0)?;
    sum / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use kosmograph_models::layers::l2_normalize;

    fn rows(shape: &[usize], phase: f64) -> Tensor {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| (i as f64 * 0.7 + phase).sin() as f32);
        let values = Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap();
        l2_normalize(&values).unwrap()
    }

    /// The scale that is begun with; both losses, the gradients of pictures, captions and texts (their first values), and the
    /// scale's.
    type Case = (f64, [f32; 2], [[f32; 3]; 3], f32);

    /// The losses and gradients of torch for the same rows: normalised sines of 0.7 i + phase.
    #[test]
    fn losses_and_gradients_are_torchs() {
        let wanted: [Case; 2] = [
            (
                1.0 / 0.07,
                [1.749_288_1, 3.519_526_7],
                [
                    [-7.096_994_4, -2.896_454_8, 2.666_332_7],
                    [-0.000_426_181_27, -1.041_810_9, -1.593_215_7],
                    [0.0, -2.084_030_9, -3.187_909_4],
                ],
                5.233_337_4,
            ),
            (
                200.0,
                [12.230_778, 24.610_018],
                [
                    [-50.109_69, -20.490_526, 18.765_654],
                    [0.0, -7.354_674_3, -11.250_33],
                    [0.0, -14.709_347, -22.500_66],
                ],
                0.0,
            ),
        ];
        for (start, losses, gradients, of_scale) in wanted {
            let var = |tensor: &Tensor| Var::from_tensor(tensor).unwrap();
            let inputs = [rows(&[3, 4], 0.0), rows(&[3, 4], 1.0), rows(&[3, 2, 4], 2.0)];
            let [pictures, captions, texts] = inputs.each_ref().map(var);
            let logit_scale = var(&Tensor::new(start.ln() as f32, &Device::Cpu).unwrap());
            let scale = scale(&logit_scale).unwrap();
            let both = both_ways(&pictures, &captions, &scale).unwrap();
            let near = first_of(&pictures, &texts, &scale).unwrap();
            let close = |found: f32, want: f32| {
                assert!((found - want).abs() <= 1e-4 * want.abs().max(1.0), "{found} and {want}");
            };
            close(both.to_scalar().unwrap(), losses[0]);
            close(near.to_scalar().unwrap(), losses[1]);
            let store = (both + near).unwrap().backward().unwrap();
            for (var, want) in [&pictures, &captions, &texts].into_iter().zip(gradients) {
                let found = store.get(var).unwrap().flatten_all().unwrap();
                let found = found.to_vec1::<f32>().unwrap();
                found.into_iter().zip(want).for_each(|(found, want)| close(found, want));
            }
            close(store.get(&logit_scale).unwrap().to_scalar().unwrap(), of_scale);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let one = Tensor::new(1f32, &Device::Cpu).unwrap();
        assert!(both_ways(&rows(&[3, 4], 0.0), &rows(&[2, 4], 0.0), &one).is_err());
        assert!(first_of(&rows(&[3, 4], 0.0), &rows(&[2, 2, 4], 0.0), &one).is_err());
    }
}
