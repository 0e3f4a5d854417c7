//! RebatchImages: the same pictures in batches of another size, as a list.

use node::{Context, Error, Image, Inputs, List, Node, Result, outputs};

use super::{image, pictures};
use kosmograph_pixels::Shape;

/// Cuts the pictures of all batches that it is given into batches of one size; the last may have fewer. What comes
/// behind it runs once for each batch, so that no more pictures are in work at once.
#[derive(Inputs)]
#[node(category = "image/batch", input_is_list)]
pub struct RebatchImages {
    /// The batches.
    pub images: List<Image>,
    /// How many pictures a batch has.
    #[widget(default = 1, min = 1, max = 4096)]
    pub batch_size: List<u64>,
}

impl Node for RebatchImages {
    outputs![IMAGE: List<Image>];

    fn run(self, cx: &Context) -> Result<List<Image>> {
        let size = self.batch_size.0.first().map_or(1, |size| *size as usize);
        let count = self.images.0.len();
        let mut all = Vec::with_capacity(count);
        for (i, batch) in self.images.0.iter().enumerate() {
            let read = pictures(batch)
                .map_err(|error| error.within(format!("element {} of {count}", i + 1)));
            all.push(read.map_err(|error| error.of_input("images"))?);
        }
        let one_by_one = all.iter().flat_map(|(shape, values)| {
            values.chunks(shape.picture()).map(|picture| (Shape { batch: 1, ..*shape }, picture))
        });
        let one_by_one: Vec<(Shape, &[f32])> = one_by_one.collect();
        let mut batches = Vec::with_capacity(one_by_one.len().div_ceil(size));
        for batch in one_by_one.chunks(size) {
            cx.cancelled()?;
            let shape = batch[0].0;
            if let Some((other, _)) = batch.iter().find(|(other, _)| *other != shape) {
                return Err(Error::at(
                    "images",
                    format!(
                        "pictures of {} and of {} cannot be one batch; with a batch_size of 1 each is its own",
                        said(shape),
                        said(*other)
                    ),
                ));
            }
            let shape = Shape { batch: batch.len(), ..shape };
            let mut values = shape.room()?;
            batch.iter().for_each(|(_, picture)| values.extend_from_slice(picture));
            batches.push(image(shape, values)?);
        }
        Ok(List(batches))
    }
}

fn said(shape: Shape) -> String {
    format!("{} x {} pixels and {} channels", shape.width, shape.height, shape.channels)
}
