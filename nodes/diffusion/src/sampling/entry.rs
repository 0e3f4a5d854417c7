//! An entry of a CONDITIONING made ready for latents of one size: where it counts, how much, and when.
//!
//! The rules are ComfyUI's, so that saved workflows give the pictures they gave: an area is cut to the
//! picture and its inner edges rise over [`RAMP`] latent pixels; a mask is scaled bilinearly and takes the
//! ramp's place; an area of one side is evaluated for the other side too, so that guidance compares like
//! with like.

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::samplers::Schedule;
use node::*;
use node_candle::import;

use super::control::Controls;
use super::extra::Extra;
use super::grounding::Groundings;
use super::range::Range;
use super::resize::bilinear;
use crate::unclip;

/// How far an area's inner edges rise, in latent pixels.
const RAMP: usize = 8;

/// A rectangle in latent pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub y: usize,
    pub x: usize,
    pub height: usize,
    pub width: usize,
}

impl Area {
    fn holds(&self, other: &Area) -> bool {
        self.y <= other.y
            && self.x <= other.x
            && other.y + other.height <= self.y + self.height
            && other.x + other.width <= self.x + self.width
    }
}

/// How much an entry counts against the others.
#[derive(Clone)]
pub enum Weight {
    /// Equally everywhere in its area.
    Even(f64),
    /// [1 or B, 1, h, w] over its area.
    Each(Candle),
}

/// What one entry asks of the denoiser.
#[derive(Clone)]
pub struct Entry {
    /// [1 or B, T, D].
    pub context: Candle,
    /// What its controls read instead, [1 or B, T, D].
    pub control_context: Option<Candle>,
    /// What models of SDXL's family take beside it.
    pub vector: Option<Vector>,
    /// Nothing: the whole picture.
    pub area: Option<Area>,
    pub weight: Weight,
    pub range: Range,
    /// Places in [`Controls`].
    pub controls: Vec<usize>,
    /// Its controls act on the negative too where that has none.
    covers_negative: bool,
    /// The U-Net's further input channels, [B, E, H, W].
    pub extra: Option<Candle>,
    /// A place in [`Groundings`].
    pub grounding: Option<usize>,
}

/// What entries are made ready for.
#[derive(Clone)]
pub struct Frame {
    pub device: Device,
    pub schedule: Schedule,
    /// [B, C, H, W] of the latents.
    pub dims: (usize, usize, usize, usize),
    /// The context's width that the model wants, where it says so.
    pub context_width: Option<usize>,
    /// The width of the pooled vector and the number of sizes that the model wants beside it, where it does.
    pub vector: Option<(usize, usize)>,
    /// At what scale the network takes a further latent, where that is known.
    pub concat_scale: Option<f64>,
    pub extra: Extra,
    /// Of the noise that the sampling begins with, which the noise of pictures follows.
    pub seed: u64,
}

/// The pooled vector and the sizes of one entry.
#[derive(Clone)]
pub struct Vector {
    /// [1, P].
    pub pooled: Candle,
    /// [1, S].
    pub sizes: Candle,
}

/// A side of guidance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Positive,
    Negative,
}

/// A side of guidance as a node is given it.
pub struct Given<'a> {
    /// What the node calls it.
    pub input: &'static str,
    pub conditioning: &'a Conditioning,
}

/// The entries of all sides of guidance; the first is the positive.
pub fn all_sides(
    frame: &Frame,
    given: &[Given<'_>],
    controls: &mut Controls,
    groundings: &mut Groundings,
) -> Result<Vec<Vec<Entry>>> {
    let mut sides = Vec::with_capacity(given.len());
    for (place, Given { input, conditioning }) in given.iter().enumerate() {
        let side = if place == 0 { Side::Positive } else { Side::Negative };
        let entries = conditioning.entries();
        let entries = entries.iter().map(|entry| frame.entry(entry, side, controls, groundings));
        let entries = entries.collect::<Result<Vec<_>>>();
        sides.push(entries.map_err(|error| error.of_input(input))?);
    }
    for place in 0..sides.len() {
        let theirs = sides[place].clone();
        for (_, side) in sides.iter_mut().enumerate().filter(|(other, _)| *other != place) {
            add_missing_areas(side, &theirs);
        }
    }
    if let Some((positive, others)) = sides.split_first_mut() {
        others.iter_mut().for_each(|side| cover_negative(positive, side));
        others.iter_mut().for_each(|side| ground_negative(positive, side));
    }
    Ok(sides)
}

/// For every area of `other` its like in `side`, with the context of the smallest entry around it: an area
/// of the positive is guided away from the negative within that area.
fn add_missing_areas(side: &mut Vec<Entry>, other: &[Entry]) {
    for theirs in other {
        let Some(area) = theirs.area else { continue };
        let size = |entry: &Entry| entry.area.map_or(usize::MAX, |area| area.height * area.width);
        let around = side.iter().filter(|ours| ours.area.is_none_or(|ours| ours.holds(&area)));
        let Some(smallest) = around.min_by_key(|ours| size(ours)) else { continue };
        if smallest.area == Some(area) {
            continue;
        }
        let (context, extra) = (smallest.context.clone(), smallest.extra.clone());
        let vector = smallest.vector.clone();
        let control_context = smallest.control_context.clone();
        side.push(Entry { context, control_context, vector, extra, ..theirs.clone() });
    }
}

/// Controls that were applied to the positive alone, but are meant for both, go to the negative's entries
/// in turn, unless the negative has controls of its own.
fn cover_negative(positive: &[Entry], negative: &mut [Entry]) {
    let covering = positive.iter().filter(|entry| entry.covers_negative && entry.area.is_none());
    let controls: Vec<&Vec<usize>> = covering.map(|entry| &entry.controls).collect();
    let mut open: Vec<&mut Entry> =
        negative.iter_mut().filter(|entry| entry.area.is_none()).collect();
    if open.is_empty() || open.iter().any(|entry| !entry.controls.is_empty()) {
        return;
    }
    let count = open.len();
    for (i, controls) in controls.into_iter().enumerate() {
        open[i % count].controls = controls.clone();
    }
}

/// The same of boxes, which always are for both.
fn ground_negative(positive: &[Entry], negative: &mut [Entry]) {
    let grounded = positive.iter().filter(|entry| entry.area.is_none());
    let groundings: Vec<usize> = grounded.filter_map(|entry| entry.grounding).collect();
    let mut open: Vec<&mut Entry> =
        negative.iter_mut().filter(|entry| entry.area.is_none()).collect();
    if open.is_empty() || open.iter().any(|entry| entry.grounding.is_some()) {
        return;
    }
    let count = open.len();
    for (i, grounding) in groundings.into_iter().enumerate() {
        open[i % count].grounding = Some(grounding);
    }
}

impl Frame {
    fn entry(
        &self,
        entry: &Value,
        side: Side,
        controls: &mut Controls,
        groundings: &mut Groundings,
    ) -> Result<Entry> {
        let number = |key: &str, default: f64| {
            entry.get(key).and_then(|value| value.as_f64()).unwrap_or(default)
        };
        let flag = |key: &str| entry.get(key).and_then(|value| value.as_bool()).unwrap_or(false);
        let mask = match entry.get("mask") {
            Some(mask) => Some(self.mask(&<Mask as Socket>::from_value(mask)?)?),
            None => None,
        };
        let area = match (&mask, entry.get("area")) {
            (Some(mask), _) if flag("area_from_mask") => Some(bounds(mask)?),
            (_, Some(area)) => Some(self.area(&area)?),
            _ => None,
        };
        let area = area.map(|area| self.cut(area)).transpose()?;
        let strength = number("strength", 1.0);
        let weight = match (&mask, area) {
            (Some(mask), area) => {
                let part = match area {
                    Some(area) => part(mask, &area)?,
                    None => mask.clone(),
                };
                Weight::Each((part * (number("mask_strength", 1.0) * strength))?)
            }
            (None, Some(area)) => self.ramp(&area, strength)?,
            (None, None) => Weight::Even(strength),
        };
        Ok(Entry {
            context: self.context(entry)?,
            control_context: self.control_context(entry)?,
            vector: self.vector(entry, side)?,
            area,
            weight,
            range: Range::new(&self.schedule, number("start", 0.0), number("end", 1.0)),
            controls: controls.of_entry(entry, &self.schedule)?,
            covers_negative: flag("control_covers_negative"),
            extra: self.extra.channels(entry, self.dims, self.concat_scale, &self.device)?,
            grounding: groundings.of_entry(entry),
        })
    }

    fn context(&self, entry: &Value) -> Result<Candle> {
        let tensor = Conditioning(Value::list(vec![entry.clone()])).contexts()?.remove(0);
        let context = import(&tensor, &self.device)?;
        let (_, _, width) = context.dims3()?;
        match self.context_width {
            Some(wanted) if wanted != width => Err(Error::new(format!(
                "the conditioning is {width} numbers wide, but the model takes {wanted}: it was made by \
                 the text encoder of another family of models"
            ))),
            _ => Ok(rows_for(&context, self.dims.0)?),
        }
    }

    fn control_context(&self, entry: &Value) -> Result<Option<Candle>> {
        let Some(tensor) = entry.get("control_context").and_then(|context| context.as_tensor())
        else {
            return Ok(None);
        };
        Ok(Some(rows_for(&import(&tensor, &self.device)?, self.dims.0)?))
    }

    /// The entries of a conditioning that is asked for beside the sides, as a negative.
    ///
    /// # Errors
    /// As for [`all_sides`].
    pub fn beside(
        &self,
        conditioning: &Conditioning,
        controls: &mut Controls,
        groundings: &mut Groundings,
    ) -> Result<Vec<Entry>> {
        let entries = conditioning.entries();
        let entries = entries.iter();
        entries.map(|entry| self.entry(entry, Side::Negative, controls, groundings)).collect()
    }

    /// The pooled vector, and the sizes that the entry says; those that it does not say are the latents'.
    fn vector(&self, entry: &Value, side: Side) -> Result<Option<Vector>> {
        let Some((width, count)) = self.vector else { return Ok(None) };
        // Pictures take the place of the text's vector.
        let of_pictures = unclip::pooled(entry, width, self.seed, &self.device)?;
        let of_text = || {
            let pooled = entry.get("pooled").and_then(|pooled| pooled.as_tensor())?;
            Some(import(&pooled, &self.device))
        };
        let Some(pooled) = of_pictures.map(Ok).or_else(of_text).transpose()? else {
            return Err(Error::new(
                "the conditioning has no pooled vector, which a model of SDXL's family takes: it was not made by \
                 its text encoders",
            ));
        };
        if pooled.dims() != [1, width] {
            return Err(Error::new(format!(
                "the conditioning's pooled vector is {:?}, but the model takes [1, {width}]: it was made by \
                 the text encoder of another family of models",
                pooled.dims()
            )));
        }
        let told = |key: &str, default: f64| {
            let value = entry.get(key);
            let number = value.and_then(|value| {
                value.as_f64().or_else(|| value.as_i64().map(|integer| integer as f64))
            });
            number.unwrap_or(default)
        };
        let (_, _, rows, columns) = self.dims;
        let height = told("height", rows as f64 * 8.0);
        let width = told("width", columns as f64 * 8.0);
        let mut sizes = vec![height, width, told("crop_h", 0.0), told("crop_w", 0.0)];
        if count == 5 {
            let score = if side == Side::Positive { 6.0 } else { 2.5 };
            sizes.push(told("aesthetic_score", score));
        } else {
            sizes.extend([told("target_height", height), told("target_width", width)]);
        }
        if sizes.len() != count {
            return Err(Error::new(format!(
                "the model wants {count} sizes; 6, or a refiner's 5, are known"
            )));
        }
        let sizes: Vec<f32> = sizes.into_iter().map(|size| size as f32).collect();
        let sizes = Candle::from_vec(sizes, (1, count), &self.device)?;
        Ok(Some(Vector { pooled, sizes }))
    }

    /// A mask [b, H, W] of any size as [1 or B, 1, H, W] of the latents' size.
    fn mask(&self, mask: &Mask) -> Result<Candle> {
        let (batch, _, height, width) = self.dims;
        let mask = import(&mask.0, &self.device)?.unsqueeze(1)?;
        Ok(rows_for(&bilinear(&mask, height, width)?, batch)?)
    }

    /// Four integers in latent pixels, or four fractions of the picture: height, width, y, x.
    fn area(&self, value: &Value) -> Result<Area> {
        let wrong = || {
            Error::new(format!(
                "an \"area\" is a list of height, width, y and x, all INT or all FLOAT, none negative; \
                 {value:?} was given"
            ))
        };
        let items = value.as_list().filter(|items| items.len() == 4).ok_or_else(wrong)?;
        let (_, _, rows, columns) = self.dims;
        let integers: Option<Vec<i64>> = items.iter().map(Value::as_i64).collect();
        if let Some(integers) = integers {
            let natural = integers.into_iter().map(|n| usize::try_from(n).ok());
            let natural: Vec<usize> = natural.collect::<Option<_>>().ok_or_else(wrong)?;
            return Ok(Area {
                height: natural[0],
                width: natural[1],
                y: natural[2],
                x: natural[3],
            });
        }
        let pixels = |i: usize, side: usize| -> Result<usize> {
            let fraction = items[i].as_f64().filter(|n| (0.0..=1.0).contains(n));
            Ok((fraction.ok_or_else(wrong)? * side as f64).round_ties_even() as usize)
        };
        let (height, width) = (pixels(0, rows)?.max(1), pixels(1, columns)?.max(1));
        Ok(Area { height, width, y: pixels(2, rows)?, x: pixels(3, columns)? })
    }

    /// The part of `area` that lies in the picture.
    fn cut(&self, area: Area) -> Result<Area> {
        let (_, _, rows, columns) = self.dims;
        let height = area.height.min(rows.saturating_sub(area.y));
        let width = area.width.min(columns.saturating_sub(area.x));
        if height == 0 || width == 0 {
            return Err(Error::new(format!(
                "the area of {} × {} latent pixels at x {}, y {} lies outside the latents, which are {} × \
                 {} (a latent pixel is 8 of the picture's)",
                area.width, area.height, area.x, area.y, columns, rows
            )));
        }
        Ok(Area { height, width, ..area })
    }

    /// `strength`, rising over the area's edges that are not the picture's.
    fn ramp(&self, area: &Area, strength: f64) -> Result<Weight> {
        let (_, _, rows, columns) = self.dims;
        let (rows, columns) =
            (edges(area.y, area.height, rows), edges(area.x, area.width, columns));
        if rows.iter().chain(&columns).all(|&weight| weight == 1.0) {
            return Ok(Weight::Even(strength));
        }
        let strength = strength as f32;
        let weights: Vec<f32> =
            rows.iter().flat_map(|y| columns.iter().map(move |x| strength * y * x)).collect();
        let shape = (1, 1, area.height, area.width);
        Ok(Weight::Each(Candle::from_vec(weights, shape, &self.device)?))
    }
}

/// The weights along one axis of an area that begins at `offset` of `whole` pixels.
fn edges(offset: usize, size: usize, whole: usize) -> Vec<f32> {
    let ramp = RAMP.min(size / 4);
    let mut weights = vec![1f32; size];
    for i in 0..ramp {
        let weight = (i + 1) as f32 / ramp as f32;
        if offset != 0 {
            weights[i] *= weight;
        }
        if offset + size < whole {
            weights[size - 1 - i] *= weight;
        }
    }
    weights
}

/// The smallest rectangle around what is not 0 in a mask [B, 1, H, W], at least 8 × 8 where there is room.
fn bounds(mask: &Candle) -> Result<Area> {
    let (_, _, height, width) = mask.dims4()?;
    let values: Vec<f32> = mask.flatten_all()?.to_vec1()?;
    let (mut top, mut left, mut bottom, mut right) = (height, width, 0, 0);
    for (i, _) in values.iter().enumerate().filter(|(_, value)| **value != 0.0) {
        let (y, x) = (i / width % height, i % width);
        (top, left) = (top.min(y), left.min(x));
        (bottom, right) = (bottom.max(y + 1), right.max(x + 1));
    }
    if bottom == 0 {
        // An empty mask weighs nothing anywhere; the smallest area is the quickest.
        return Ok(Area { y: 0, x: 0, height: 8, width: 8 });
    }
    Ok(Area { y: top, x: left, height: (bottom - top).max(8), width: (right - left).max(8) })
}

/// The part of [B, C, H, W] that lies in `area`.
pub fn part(tensor: &Candle, area: &Area) -> candle_core::Result<Candle> {
    tensor.narrow(2, area.y, area.height)?.narrow(3, area.x, area.width)
}

/// A tensor [b, …] for `rows` rows: its first ones, or all of them in turn until there are enough.
pub fn rows_for(tensor: &Candle, rows: usize) -> candle_core::Result<Candle> {
    let given = tensor.dim(0)?;
    if given == 1 || given == rows {
        return Ok(tensor.clone());
    }
    let turns = vec![tensor; rows.div_ceil(given.max(1))];
    Candle::cat(&turns, 0)?.narrow(0, 0, rows)
}
