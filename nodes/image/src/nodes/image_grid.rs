//! ImageGrid: a batch of pictures as one, with what is written to each.

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::{image, pictures};
use crate::levels::{from_levels, to_levels};
use kosmograph_contact_sheet::{Cell, Picture, Sheet};
use kosmograph_pixels::Shape;

/// Puts pictures beside each other in columns and rows, with texts below them: a contact sheet. Transparent ones lie on black.
#[derive(Inputs)]
#[node(category = "image/batch")]
pub struct ImageGrid {
    pub images: Image,
    /// How many are in a row; 0 makes as many columns as rows.
    #[widget(default = 0, min = 0, max = 4096)]
    pub columns: u64,
    /// What stands below each picture, one a line.
    #[widget(default = "", multiline)]
    pub labels: Option<String>,
    /// What stands above all of them.
    #[widget(default = "")]
    pub title: Option<String>,
    /// Larger pictures are scaled so that neither side has more pixels; 0 leaves them.
    #[widget(default = 0, min = 0, max = 16_384)]
    pub largest_size: Option<u64>,
}

impl Node for ImageGrid {
    outputs![image: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.images).map_err(|error| error.of_input("images"))?;
        let columns = match self.columns as usize {
            0 => (shape.batch as f64).sqrt().ceil() as usize,
            columns => columns.min(shape.batch),
        };
        let labels = self.labels.unwrap_or_default();
        let mut labels = labels.lines();
        let mut cells = Vec::with_capacity(shape.batch);
        for (picture, step) in values.chunks(shape.picture()).zip(cx.steps(shape.batch)) {
            step?;
            let levels = to_levels(picture);
            let pixels = levels.chunks_exact(shape.channels).flat_map(|pixel| match *pixel {
                [red, green, blue, alpha] => {
                    let on_black = |level: u8| (u16::from(level) * u16::from(alpha) / 255) as u8;
                    [red, green, blue].map(on_black)
                }
                [red, green, blue] => [red, green, blue],
                _ => [pixel[0]; 3],
            });
            let pixels = pixels.collect();
            let mut picture = Picture { width: shape.width, height: shape.height, pixels };
            if let Some(longest @ 1..) = self.largest_size {
                picture = picture.within(longest as usize)?;
            }
            let label = labels.next().unwrap_or_default().to_owned();
            cells.push(Cell { picture: Some(picture), label });
        }
        let rows = shape.batch.div_ceil(columns);
        let sheet = Sheet {
            title: self.title.unwrap_or_default(),
            columns: vec![String::new(); columns],
            rows: vec![String::new(); rows],
            cells,
        };
        let Picture { width, height, pixels } = sheet.draw()?;
        image(Shape { batch: 1, width, height, channels: 3 }, from_levels(&pixels))
    }
}
