//! LatentFromBatch and RepeatLatentBatch: some latents of a batch, or more of them.
//!
//! "batch_index" keeps which picture of the batch each one was, so that a sampler can give it the noise it had there; "noise_mask" goes
//! along with its latents.

use node::*;

/// Takes `length` latents out of a batch, from `batch_index` on.
#[derive(Inputs)]
#[node(category = "latent/batch")]
pub struct LatentFromBatch {
    /// The batch.
    samples: Latent,
    /// The first one, counted from 0.
    #[widget(default = 0, min = 0, max = 63)]
    batch_index: i64,
    /// How many.
    #[widget(default = 1, min = 1, max = 64)]
    length: i64,
}

impl Node for LatentFromBatch {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples()?;
        let count = samples.shape()[0];
        let first = (self.batch_index as usize).min(count - 1);
        let length = (self.length as usize).min(count - first);
        let mut latent = self.samples.with_samples(rows(&samples, first..first + length)?).0;
        if let Some(mask) = noise_mask(&self.samples)?
            && mask.shape()[0] > 1
        {
            let own = mask.shape()[0];
            let mask = rows(&mask, (first..first + length).map(|row| row % own))?;
            latent = latent.with("noise_mask", mask.into_value());
        }
        let indices = match batch_index(&self.samples) {
            Some(indices) => indices.into_iter().skip(first).take(length).collect(),
            None => (first as i64..(first + length) as i64).collect(),
        };
        Ok(Latent(latent.with("batch_index", list(indices))))
    }
}

/// Repeats a batch of latents.
#[derive(Inputs)]
#[node(category = "latent/batch")]
pub struct RepeatLatentBatch {
    /// The batch.
    samples: Latent,
    /// How many times it is there in the end.
    #[widget(default = 1, min = 1, max = 64)]
    amount: i64,
}

impl Node for RepeatLatentBatch {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let amount = self.amount as usize;
        let samples = self.samples.samples()?;
        let count = samples.shape()[0];
        let repeated = rows(&samples, (0..amount * count).map(|row| row % count))?;
        let mut latent = self.samples.with_samples(repeated).0;
        if let Some(mask) = noise_mask(&self.samples)?
            && mask.shape()[0] > 1
        {
            let own = mask.shape()[0];
            let repeated = (0..amount * count).map(|row| row % count % own);
            latent = latent.with("noise_mask", rows(&mask, repeated)?.into_value());
        }
        if let Some(indices) = batch_index(&self.samples) {
            // Each repetition counts on from the one before, so that no two pictures have one noise.
            let (least, most) = (indices.iter().min(), indices.iter().max());
            let span = most.zip(least).map_or(0, |(most, least)| most.saturating_sub(*least) + 1);
            let repeated = (0..amount as i64).flat_map(|turn| {
                indices.iter().map(move |index| index.saturating_add(turn.saturating_mul(span)))
            });
            latent = latent.with("batch_index", list(repeated.collect()));
        }
        Ok(Latent(latent))
    }
}

/// Rows of the first axis, in that order.
fn rows(tensor: &Tensor, rows: impl ExactSizeIterator<Item = usize>) -> Result<Tensor> {
    let mut shape = tensor.shape();
    let values = tensor.to_f32()?;
    let size: usize = shape[1..].iter().product();
    shape[0] = rows.len();
    let mut taken = memory::room("the latents", &shape)?;
    rows.for_each(|row| taken.extend_from_slice(&values[row * size..][..size]));
    Tensor::from_f32(&shape, taken)
}

/// The mask of where noise is taken away, its first axis the batch's.
fn noise_mask(latent: &Latent) -> Result<Option<Tensor>> {
    let Some(mask) = latent.0.get("noise_mask").and_then(|mask| mask.as_tensor()) else {
        return Ok(None);
    };
    if mask.shape().is_empty() || mask.shape().contains(&0) {
        let shape = mask.shape();
        return Err(Error::at("samples", format!("the latents' noise_mask is empty: {shape:?}")));
    }
    Ok(Some(mask))
}

fn batch_index(latent: &Latent) -> Option<Vec<i64>> {
    latent.0.get("batch_index")?.as_list()?.iter().map(Value::as_i64).collect()
}

fn list(indices: Vec<i64>) -> Value {
    Value::list(indices.into_iter().map(Value::from).collect())
}
