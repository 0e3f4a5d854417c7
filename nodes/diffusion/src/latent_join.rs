//! Latents joined and cut along an axis, and the noise of a batch: LatentBatch, LatentBatchSeedBehavior, LatentConcat, LatentCut.

use kosmograph_pixels::torch::Mode;
use node::*;

use crate::latent_math::{at_size, dims};
use crate::latent_resize::Dims;

/// Two batches of latents as one; each latent keeps the noise that it had in its own.
#[derive(Inputs)]
#[node(category = "latent/batch")]
pub struct LatentBatch {
    /// The first; its size is the result's.
    samples1: Latent,
    /// What comes behind it.
    samples2: Latent,
}

impl Node for LatentBatch {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let (samples1, samples2) = at_one_scale(&self.samples1, &self.samples2)?;
        let first = samples1.samples()?;
        let own = dims(&first);
        let second =
            at_size(&samples2, &own, Mode::Bilinear).map_err(|error| error.of_input("samples2"))?;
        let row: usize = own[1..].iter().product();
        let count = own[0] + second.len() / row;
        let shape = [count, own[1], own[2], own[3]];
        let mut values = memory::room("the latents", &shape)?;
        values.extend_from_slice(&first.to_f32()?);
        values.extend_from_slice(&second);
        let places = |latent: &Latent, count: usize| -> Result<Vec<i64>> {
            Ok(latent.batch_index()?.unwrap_or_else(|| (0..count as i64).collect()))
        };
        let mut index = places(&self.samples1, own[0])?;
        index.extend(places(&self.samples2, count - own[0])?);
        let joined = samples1.with_samples(Tensor::from_f32(&shape, values)?);
        Ok(Latent(joined.0.with("batch_index", list(index))))
    }
}

/// Whether the pictures of a batch have noise of their own, or all of them the first one's.
#[derive(Inputs)]
#[node(category = "latent/advanced")]
pub struct LatentBatchSeedBehavior {
    /// The batch.
    samples: Latent,
    /// Of its own each, or the same.
    #[widget(choices = ["random", "fixed"], default = "fixed")]
    seed_behavior: String,
}

impl Node for LatentBatchSeedBehavior {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        if self.seed_behavior == "random" {
            let pairs = self.samples.0.as_map().unwrap_or_default().into_iter();
            return Ok(Latent(Value::map(pairs.filter(|(key, _)| key != "batch_index"))));
        }
        let count = self.samples.samples()?.shape()[0];
        let index = self.samples.batch_index()?;
        let first = index.and_then(|index| index.first().copied()).unwrap_or(0);
        Ok(Latent(self.samples.0.with("batch_index", list(vec![first; count]))))
    }
}

/// Puts latents beside each other.
#[derive(Inputs)]
#[node(category = "latent/advanced")]
pub struct LatentConcat {
    /// The first; the second is as many.
    samples1: Latent,
    /// The second.
    samples2: Latent,
    /// Along which axis; with -, the second comes first.
    #[widget(choices = ["x", "-x", "y", "-y", "t", "-t"], default = "x")]
    dim: String,
}

impl Node for LatentConcat {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let axis = axis(&self.dim)?;
        let (samples1, samples2) = at_one_scale(&self.samples1, &self.samples2)?;
        let (one, two) = (samples1.samples()?, samples2.samples()?);
        let (dims_one, mut dims_two) = (dims(&one), dims(&two));
        let rows = dims_two[0];
        dims_two[0] = dims_one[0];
        if (1..4).any(|other| other != axis && dims_one[other] != dims_two[other]) {
            return Err(Error::at(
                "samples2",
                format!(
                    "latents of the shape {:?} cannot be put beside those of {:?} along {}: the other sides differ",
                    two.shape(),
                    one.shape(),
                    self.dim
                ),
            ));
        }
        let mut shape = dims_one;
        shape[axis] += dims_two[axis];
        // Slices along the axis and all behind it follow each other.
        let run = |dims: &Dims| dims[axis..].iter().product::<usize>();
        let outer: usize = dims_one[..axis].iter().product();
        let (one, two) = (one.to_f32()?, two.to_f32()?);
        let (run_one, run_two) = (run(&dims_one), run(&dims_two));
        let own = two.len() / run_two;
        debug_assert_eq!(own, rows * outer / dims_one[0]);
        let mut values = memory::room("the latents", &shape)?;
        for i in 0..outer {
            let first = &one[i * run_one..][..run_one];
            // Of fewer the first ones come again.
            let second = &two[i % own * run_two..][..run_two];
            let pair = if self.dim.starts_with('-') { [second, first] } else { [first, second] };
            pair.iter().for_each(|part| values.extend_from_slice(part));
        }
        Ok(samples1.with_samples(Tensor::from_f32(&shape, values)?))
    }
}

/// Cuts a piece out of latents along an axis, in latent pixels.
#[derive(Inputs)]
#[node(category = "latent/advanced")]
pub struct LatentCut {
    /// What is cut.
    samples: Latent,
    /// Along which axis.
    #[widget(choices = ["x", "y", "t"], default = "x")]
    dim: String,
    /// Where the piece begins; below 0 it is counted from the end.
    #[widget(default = 0, min = -16384, max = 16384)]
    index: i64,
    /// How long it is.
    #[widget(default = 1, min = 1, max = 16384)]
    amount: i64,
}

impl Node for LatentCut {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let axis = axis(&self.dim)?;
        let tensor = self.samples.samples()?;
        let own = dims(&tensor);
        let size = own[axis] as i64;
        let (start, amount) = if self.index >= 0 {
            let start = self.index.min(size - 1);
            (start, self.amount.min(size - start))
        } else {
            let from_end = (-self.index).min(size);
            (size - from_end, self.amount.min(from_end))
        };
        let (start, amount) = (start as usize, amount as usize);
        let behind: usize = own[axis + 1..].iter().product();
        let outer: usize = own[..axis].iter().product();
        let values = tensor.to_f32()?;
        let mut shape = own;
        shape[axis] = amount;
        let mut cut = memory::room("the latents", &shape)?;
        for i in 0..outer {
            let first = (i * own[axis] + start) * behind;
            cut.extend_from_slice(&values[first..][..amount * behind]);
        }
        Ok(self.samples.with_samples(Tensor::from_f32(&shape, cut)?))
    }
}

/// Both latents at the first's scale.
fn at_one_scale(first: &Latent, second: &Latent) -> Result<(Latent, Latent)> {
    first.at_one_scale(second).map_err(|error| error.of_input("samples2"))
}

/// The axis of [B, C, h, w] that ComfyUI calls x, y or t; of pictures the last is the channels.
fn axis(name: &str) -> Result<usize> {
    match name.trim_start_matches('-') {
        "x" => Ok(3),
        "y" => Ok(2),
        "t" => Ok(1),
        other => Err(Error::at("dim", format!("{other} is no axis; x, y or t would be right"))),
    }
}

fn list(indices: Vec<i64>) -> Value {
    Value::list(indices.into_iter().map(Value::from).collect())
}
