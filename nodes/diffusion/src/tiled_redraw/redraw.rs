//! A picture in 8 bits, drawn anew patch by patch.

use kosmograph_pixels::Shape;
use kosmograph_pixels::pillow::{self, Filter, Picture};
use kosmograph_pixels::torch::{Mode, interpolate};
use node::*;

use super::tiles::{Grid, Order, Patch, Seams, Window};
use crate::latent::{VAEDecode, VAEEncode};
use crate::latent_tiled::VAEDecodeTiled;
use crate::sample::KSampler;

/// Pictures of one size in RGB, 8 bits: [height, width, 3] each.
pub struct Levels {
    pub pictures: Vec<Vec<u8>>,
    pub width: usize,
    pub height: usize,
}

impl Levels {
    /// Of pictures with three channels.
    ///
    /// # Errors
    /// There is no memory.
    pub fn of(image: &Image) -> Result<Levels> {
        let (batch, height, width, _) = image.dims();
        let values = image.0.to_f32()?;
        // The fraction is dropped, as where a picture is saved.
        let level = |value: &f32| (255.0 * value).clamp(0.0, 255.0) as u8;
        let mut pictures = Vec::with_capacity(batch);
        for picture in values.chunks(height * width * 3) {
            let mut levels: Vec<u8> = memory::room("a picture in 8 bits", &[height, width, 3])?;
            levels.extend(picture.iter().map(level));
            pictures.push(levels);
        }
        Ok(Levels { pictures, width, height })
    }

    fn into_image(self) -> Result<Image> {
        let shape = [self.pictures.len(), self.height, self.width, 3];
        let mut values = memory::room("the pictures", &shape)?;
        for picture in &self.pictures {
            values.extend(picture.iter().map(|level| f32::from(*level) / 255.0));
        }
        Ok(Image(Tensor::from_f32(&shape, values)?))
    }

    /// The window of every picture, at another size if it has one.
    fn cut(&self, window: Window, (width, height): (usize, usize)) -> Result<Levels> {
        let cut = |picture: &Vec<u8>| -> Result<Vec<u8>> {
            let rows = picture.chunks(self.width * 3).skip(window.top).take(window.height);
            let part: Vec<u8> =
                rows.flat_map(|row| &row[window.left * 3..][..window.width * 3]).copied().collect();
            resized(part, (window.width, window.height), (width, height))
        };
        let pictures = self.pictures.iter().map(cut).collect::<Result<_>>()?;
        Ok(Levels { pictures, width, height })
    }
}

fn resized(
    pixels: Vec<u8>,
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
) -> Result<Vec<u8>> {
    if (width, height) == (to_width, to_height) {
        return Ok(pixels);
    }
    let picture = Picture { pixels: &pixels, width, height, channels: 3 };
    Ok(pillow::resize(picture, to_width, to_height, Filter::Lanczos)?)
}

/// A patch, how it is drawn, and the size that it is drawn in where all are drawn in one.
type Work = (Patch, Step, Option<(usize, usize)>);

/// How patches of one kind are drawn.
#[derive(Clone, Copy)]
pub struct Step {
    denoise: f64,
    blur: usize,
    padding: usize,
}

impl Step {
    /// The numbers of widgets, which are not below 0.
    pub fn new(denoise: f64, blur: i64, padding: i64) -> Step {
        Step { denoise, blur: blur as usize, padding: padding as usize }
    }
}

/// What a picture is drawn anew with.
pub struct Redraw {
    pub model: Model,
    pub positive: Conditioning,
    pub negative: Conditioning,
    pub vae: Vae,
    pub seed: u64,
    pub steps: i64,
    pub cfg: f64,
    pub sampler_name: String,
    pub scheduler: String,
    pub order: Order,
    /// Width and height.
    pub tile: (usize, usize),
    pub tiles: Step,
    pub seams: Seams,
    pub seam: Step,
    pub seam_width: usize,
    pub uniform: bool,
    pub tiled_decode: bool,
}

/// A side that networks take, with padding on both.
fn to_64(side: usize, padding: usize) -> usize {
    (side + padding).div_ceil(64) * 64
}

impl Redraw {
    /// The picture, drawn anew.
    ///
    /// # Errors
    /// What encoding, sampling and decoding report, and conditionings that cannot be cut.
    pub fn run(mut self, cx: &Context, mut picture: Levels) -> Result<Image> {
        let (tile_width, tile_height) = self.tile;
        let grid = Grid { width: picture.width, height: picture.height, tile_width, tile_height };
        for (name, conditioning) in
            [("positive", &mut self.positive), ("negative", &mut self.negative)]
        {
            let whole = of_whole(conditioning, (picture.width, picture.height));
            *conditioning = whole.map_err(|error| error.of_input(name))?;
        }
        let uniform = |(width, height), padding| {
            self.uniform.then(|| (to_64(width, padding), to_64(height, padding)))
        };
        let mut work: Vec<Work> = Vec::new();
        let of = uniform(self.tile, self.tiles.padding);
        work.extend(grid.tiles(self.order).into_iter().map(|patch| (patch, self.tiles, of)));
        let of = uniform(self.tile, self.seam.padding);
        match self.seams {
            Seams::None => {}
            Seams::BandPass => {
                let step = Step { blur: 0, ..self.seam };
                for patch in grid.bands(self.seam_width)? {
                    let of = uniform((patch.width, patch.height), self.seam.padding);
                    work.push((patch, step, of));
                }
            }
            Seams::HalfTile | Seams::HalfTileAndIntersections => {
                work.extend(grid.half_tiles()?.into_iter().map(|patch| (patch, self.seam, of)));
            }
        }
        if self.seams == Seams::HalfTileAndIntersections {
            // Faded already, and to all sides.
            let step = Step { blur: 0, ..self.seam };
            work.extend(grid.intersections()?.into_iter().map(|patch| (patch, step, of)));
        }
        let count = work.len();
        for (number, (patch, step, of)) in work.into_iter().enumerate() {
            cx.cancelled()?;
            cx.info(format!("part {} of {count}", number + 1));
            if let Some((window, size)) = grid.drawn_from(&patch, step.padding, of) {
                self.redraw(cx, &mut picture, &patch, step, (window, size))?;
            }
        }
        picture.into_image()
    }

    fn redraw(
        &self,
        cx: &Context,
        picture: &mut Levels,
        patch: &Patch,
        step: Step,
        (window, size): (Window, (usize, usize)),
    ) -> Result<()> {
        let pixels = picture.cut(window, size)?.into_image()?;
        let latent_image = VAEEncode { pixels, vae: self.vae.clone() }.run(cx)?;
        let part = |conditioning: &Conditioning| of_window(conditioning, window, size);
        let samples = KSampler {
            model: self.model.clone(),
            seed: self.seed,
            steps: self.steps,
            cfg: self.cfg,
            sampler_name: self.sampler_name.clone(),
            scheduler: self.scheduler.clone(),
            positive: part(&self.positive)?,
            negative: part(&self.negative)?,
            latent_image,
            denoise: step.denoise,
        }
        .run(cx)?;
        let vae = self.vae.clone();
        let drawn = match self.tiled_decode {
            true => VAEDecodeTiled::of(samples, vae).run(cx)?,
            false => VAEDecode { samples, vae }.run(cx)?,
        };
        let (batch, height, width, channels) = drawn.dims();
        if (batch, height, width, channels) != (picture.pictures.len(), size.1, size.0, 3) {
            let sentence = format!(
                "this VAE makes pictures of {width} × {height} of tiles of {} × {}",
                size.0, size.1
            );
            return Err(Error::at("vae", sentence));
        }
        let drawn = Levels::of(&drawn)?;
        let share = patch.faded(window, step.blur);
        let whole = picture.width;
        for (old, new) in picture.pictures.iter_mut().zip(drawn.pictures) {
            let new = resized(new, size, (window.width, window.height))?;
            for y in 0..window.height {
                let row =
                    &mut old[((window.top + y) * whole + window.left) * 3..][..window.width * 3];
                let fresh = &new[y * window.width * 3..][..window.width * 3];
                for (i, (old, new)) in row.iter_mut().zip(fresh).enumerate() {
                    let share = share[y * window.width + i / 3];
                    let mixed = f32::from(*old) * (1.0 - share) + f32::from(*new) * share;
                    *old = mixed.round_ties_even() as u8;
                }
            }
        }
        Ok(())
    }
}

/// Every entry with its hints at the size of the picture, so that a window of them can be taken.
fn of_whole(conditioning: &Conditioning, size: (usize, usize)) -> Result<Conditioning> {
    for entry in conditioning.entries() {
        for (key, what) in [("area", "an area"), ("mask", "a mask")] {
            if entry.get(key).is_some_and(|value| !value.is_none()) {
                return Err(Error::new(format!(
                    "has {what}, which is not cut to tiles; a text for the whole picture would be right"
                )));
            }
        }
    }
    with_hints(conditioning, &|hint| {
        let (batch, height, width, channels) = hint.dims();
        let shape = Shape { batch, height, width, channels };
        let values = interpolate(&hint.0.to_f32()?, shape, (size.1, size.0), Mode::Bilinear)?;
        Ok(Image(Tensor::from_f32(&[batch, size.1, size.0, channels], values)?))
    })
}

/// Every entry with the window of its hints, at the size that the tile is drawn at.
fn of_window(
    conditioning: &Conditioning,
    window: Window,
    size: (usize, usize),
) -> Result<Conditioning> {
    with_hints(conditioning, &|hint| {
        let (batch, height, width, channels) = hint.dims();
        let values = hint.0.to_f32()?;
        let pictures = values.chunks(height * width * channels);
        let cut: Vec<f32> = pictures
            .flat_map(|picture| {
                let rows = picture.chunks(width * channels).skip(window.top).take(window.height);
                rows.flat_map(|row| &row[window.left * channels..][..window.width * channels])
            })
            .copied()
            .collect();
        let shape = Shape { batch, height: window.height, width: window.width, channels };
        let cut = match (window.width, window.height) == size {
            true => cut,
            false => interpolate(&cut, shape, (size.1, size.0), Mode::Bilinear)?,
        };
        Ok(Image(Tensor::from_f32(&[batch, size.1, size.0, channels], cut)?))
    })
}

fn with_hints(
    conditioning: &Conditioning,
    change: &dyn Fn(Image) -> Result<Image>,
) -> Result<Conditioning> {
    let entries = conditioning.entries().into_iter().map(|entry| {
        let Some(controls) = entry.get("control").and_then(|list| list.as_list()) else {
            return Ok(entry);
        };
        let changed = controls.into_iter().map(|control| with_hint(control, change));
        Ok(entry.with("control", Value::list(changed.collect::<Result<Vec<_>>>()?)))
    });
    Ok(Conditioning(Value::list(entries.collect::<Result<Vec<_>>>()?)))
}

/// A control, and those that act together with it.
fn with_hint(control: Value, change: &dyn Fn(Image) -> Result<Image>) -> Result<Value> {
    let control = <Control as Socket>::from_value(control)?;
    let changed = control.0.with("hint", change(control.hint()?)?.into_value());
    match control.previous()? {
        None => Ok(changed),
        Some(previous) => Ok(changed.with("previous", with_hint(previous.0, change)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A conditioning with a hint of 8 × 4 pixels whose values are their columns, behind another one.
    fn hinted() -> Conditioning {
        let columns: Vec<f32> = (0..4 * 8).flat_map(|i| [(i % 8) as f32; 3]).collect();
        let hint = || Tensor::from_f32(&[1, 4, 8, 3], columns.clone()).unwrap().into_value();
        let control = |more: Vec<(&'static str, Value)>| {
            let own = [("control_net", Value::from(true)), ("hint", hint())];
            Value::map(own.into_iter().chain(more))
        };
        let chained = control(vec![("previous", control(Vec::new()))]);
        let context = Tensor::from_f32(&[1, 1, 1], vec![0.0]).unwrap().into_value();
        let entry = [("context", context), ("control", Value::list(vec![chained]))];
        Conditioning(Value::list(vec![Value::map(entry)]))
    }

    fn hints(conditioning: &Conditioning) -> Vec<(Vec<usize>, Vec<f32>)> {
        let controls = conditioning.entries()[0].get("control").unwrap().as_list().unwrap();
        let mut control = Some(<Control as Socket>::from_value(controls[0].clone()).unwrap());
        let mut found = Vec::new();
        while let Some(one) = control {
            let hint = one.hint().unwrap().0;
            found.push((hint.shape(), hint.to_vec().unwrap()));
            control = one.previous().unwrap();
        }
        found
    }

    #[test]
    fn hints_are_cut_to_the_tile() {
        // A picture twice the size of its hints, of which a part is drawn at its own size.
        let whole = of_whole(&hinted(), (16, 8)).unwrap();
        let window = Window { left: 4, top: 2, width: 6, height: 4 };
        let cut = hints(&of_window(&whole, window, (6, 4)).unwrap());
        assert_eq!(cut.len(), 2);
        for (shape, values) in cut {
            assert_eq!(shape, [1, 4, 6, 3]);
            // Bilinear between columns that lie two pixels apart.
            let first: Vec<f32> = values.iter().step_by(3).take(6).copied().collect();
            assert_eq!(first, [1.75, 2.25, 2.75, 3.25, 3.75, 4.25]);
        }
        let larger = hints(&of_window(&whole, window, (12, 8)).unwrap());
        assert_eq!(larger[0].0, [1, 8, 12, 3]);
    }

    #[test]
    fn what_cannot_be_cut_is_told() {
        let entry = hinted().entries()[0].with("mask", Value::from(true));
        let error = of_whole(&Conditioning(Value::list(vec![entry])), (16, 8)).unwrap_err();
        assert!(error.to_string().contains("has a mask, which is not cut to tiles"), "{error}");
    }
}
