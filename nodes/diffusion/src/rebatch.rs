//! RebatchLatents: the same latents in batches of another size, as a list.

use kosmograph_pixels::Shape;
use kosmograph_pixels::torch::{Mode, interpolate};
use node::*;

use crate::latent_math::dims;
use crate::latent_resize::Dims;

/// How many pixels of a mask a latent pixel has.
const PIXELS: usize = 8;

/// Cuts the latents of all batches that it is given into batches of one size; the last may have fewer, and so may one
/// before latents of another size. What comes behind it runs once for each batch, so that no more are in work at once.
#[derive(Inputs)]
#[node(category = "latent/batch", input_is_list)]
pub struct RebatchLatents {
    /// The batches.
    latents: List<Latent>,
    /// How many latents a batch has.
    #[widget(default = 1, min = 1, max = 4096)]
    batch_size: List<u64>,
}

impl Node for RebatchLatents {
    outputs![LATENT: List<Latent>];

    fn run(self, cx: &Context) -> Result<List<Latent>> {
        let size = self.batch_size.0.first().map_or(1, |size| *size as usize);
        let (all, first) = (&self.latents.0, &self.latents.0[0]);
        let mut batches: Vec<Batch> = Vec::with_capacity(all.len());
        let mut before = 0;
        for (i, latent) in all.iter().enumerate() {
            let read = Batch::of(latent, first, before);
            let read =
                read.map_err(|error| error.within(format!("element {} of {}", i + 1, all.len())));
            let batch = read.map_err(|error| error.of_input("latents"))?;
            before += batch.dims[0] as i64;
            batches.push(batch);
        }
        let rows = batches.iter().flat_map(|batch| (0..batch.dims[0]).map(move |row| (batch, row)));
        let rows: Vec<(&Batch, usize)> = rows.collect();
        let mut scale = None;
        for latent in all {
            scale = scale.or(latent.scale()?);
        }
        let mut made = Vec::new();
        // Such as can be one batch, and of those so many at a time.
        for alike in rows.chunk_by(|(a, _), (b, _)| a.dims[1..] == b.dims[1..]) {
            for group in alike.chunks(size) {
                cx.cancelled()?;
                made.push(joined(group)?.with_scale(scale));
            }
        }
        Ok(List(made))
    }
}

/// One of the batches that are given.
struct Batch {
    samples: Vec<f32>,
    dims: Dims,
    /// At [`PIXELS`] times the latents' size, and how many there are.
    mask: Option<(Vec<f32>, usize)>,
    /// Which picture each latent was.
    places: Vec<i64>,
}

impl Batch {
    /// `latent` at the scale of `first`. Where it does not say which pictures its latents were, they are counted from `before`.
    fn of(latent: &Latent, first: &Latent, before: i64) -> Result<Self> {
        let (_, latent) = first.at_one_scale(latent)?;
        let tensor = latent.samples()?;
        let dims = dims(&tensor);
        let size = (dims[2].saturating_mul(PIXELS), dims[3].saturating_mul(PIXELS));
        let mask = match latent.noise_mask()? {
            None => None,
            Some(mask) => {
                let (batch, height, width) = mask.dims();
                let shape = Shape { batch, height, width, channels: 1 };
                memory::ask(
                    "the masks at another size",
                    &[batch, size.0, size.1],
                    size_of::<f32>(),
                )?;
                let values = mask.0.to_f32()?;
                let values = match (height, width) == size {
                    true => values.into_owned(),
                    false => interpolate(&values, shape, size, Mode::Bilinear)?,
                };
                Some((values, batch))
            }
        };
        let places = match latent.batch_index()? {
            Some(places) if places.len() < dims[0] => {
                return Err(Error::new(format!(
                    "its batch_index names {} latents, but there are {}",
                    places.len(),
                    dims[0]
                )));
            }
            Some(places) => places,
            None => (before..before + dims[0] as i64).collect(),
        };
        Ok(Self { samples: tensor.to_vec()?, dims, mask, places })
    }

    fn samples(&self, row: usize) -> &[f32] {
        let size: usize = self.dims[1..].iter().product();
        &self.samples[row * size..][..size]
    }

    /// The mask of a latent; of fewer masks the first come again.
    fn mask(&self, row: usize) -> Option<&[f32]> {
        let (values, count) = self.mask.as_ref()?;
        let size = values.len() / count;
        Some(&values[row % count * size..][..size])
    }
}

/// Latents of one size as one batch. It has a mask where one of them leaves something as it is.
fn joined(group: &[(&Batch, usize)]) -> Result<Latent> {
    let [_, channels, height, width] = group[0].0.dims;
    let shape = [group.len(), channels, height, width];
    let mut values = memory::room("the latents", &shape)?;
    group.iter().for_each(|(batch, row)| values.extend_from_slice(batch.samples(*row)));
    let places = group.iter().map(|(batch, row)| Value::from(batch.places[*row])).collect();
    let samples = Tensor::from_f32(&shape, values)?.into_value();
    let latent = Latent(Value::map([("samples", samples), ("batch_index", Value::list(places))]));
    let leaves =
        |mask: Option<&[f32]>| mask.is_some_and(|mask| mask.iter().any(|share| *share != 1.0));
    if !group.iter().any(|(batch, row)| leaves(batch.mask(*row))) {
        return Ok(latent);
    }
    let shape = [group.len(), height * PIXELS, width * PIXELS];
    let mut masks = memory::room("the masks", &shape)?;
    for (batch, row) in group {
        match batch.mask(*row) {
            Some(mask) => masks.extend_from_slice(mask),
            None => masks.resize(masks.len() + shape[1] * shape[2], 1.0),
        }
    }
    Ok(latent.with_noise_mask(Mask(Tensor::from_f32(&shape, masks)?)))
}
