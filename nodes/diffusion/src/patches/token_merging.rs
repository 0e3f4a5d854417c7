//! Token merging (Bolya & Hoffman, "Token Merging for Fast Stable Diffusion", arXiv 2303.17604): of the tokens that ask in
//! a self-attention those that are most alike ask as one.

use candle_core::{D, Device, Result as CandleResult, Tensor as Candle};
use node::interface::{self, AttentionCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

/// Tokens of a square of which one stays and the others may be merged.
const STRIDE: usize = 2;

struct Merging {
    /// The share of the tokens that is merged.
    ratio: f64,
}

impl Export for Merging {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Merging: marker::AttentionPatch];
}

impl interface::PatchAttention for Merging {
    fn patch_attention(&self, cx: &Context<'_>, call: &AttentionCall) -> Result<Tensor> {
        let context = call.contexts();
        let tokens = call.height * call.width;
        // At the outermost level alone, where there are most of them.
        let outermost = call.latent.is_none_or(|(height, width)| height * width == tokens);
        let count = (tokens as f64 * self.ratio) as usize;
        let small = call.height < STRIDE || call.width < STRIDE;
        if !outermost || small || count == 0 || call.x.shape().get(1) != Some(&tokens) {
            let x = call.x.clone();
            return call.attention.attend(cx, x, context, None, false).map(|(y, _)| y);
        }
        let x = import(&call.x, &device(&cx.device())?)?;
        let merged = Matched::of(&x, (call.height, call.width), count)?;
        let fewer = export(&merged.merge(&x)?)?;
        let (y, _) = call.attention.attend(cx, fewer, context, None, false)?;
        export(&merged.unmerge(&import(&y, x.device())?)?)
    }
}

/// Which tokens of each row are merged into which.
struct Matched {
    tokens: usize,
    /// The places of those that stay, by the squares.
    kept: Vec<usize>,
    rows: Vec<Row>,
}

/// Of one row: the places of those that stay besides, and of those that are merged, each with which of the squares' it joins.
type Row = (Vec<usize>, Vec<(usize, usize)>);

impl Matched {
    /// The `count` tokens of x [B, N, C], a picture of `height` × `width`, that are most alike one of those that stay: by the
    /// cosine between them. The first token of each square stays; which one does is drawn in the paper, and fixed here, so
    /// that a run can be repeated.
    fn of(x: &Candle, (height, width): (usize, usize), count: usize) -> Result<Self> {
        let (batch, tokens, _) = x.dims3()?;
        let stays = |place: usize| {
            let (y, column) = (place / width, place % width);
            let whole = y / STRIDE < height / STRIDE && column / STRIDE < width / STRIDE;
            whole && y % STRIDE == 0 && column % STRIDE == 0
        };
        let (kept, others): (Vec<usize>, Vec<usize>) = (0..tokens).partition(|&place| stays(place));
        let shape = [batch, others.len(), kept.len()];
        memory::ask("the likeness of the tokens", &shape, size_of::<f32>())?;
        let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
        // A token of zeros has no direction, and is like no other.
        let length = (&length + length.eq(0f32)?.to_dtype(x.dtype())?)?;
        let unit = x.broadcast_div(&length)?;
        let of = |places: &[usize]| -> CandleResult<Candle> {
            let places: Vec<u32> = places.iter().map(|&place| place as u32).collect();
            unit.index_select(&Candle::new(places, x.device())?, 1)
        };
        let scores = of(&others)?.matmul(&of(&kept)?.transpose(1, 2)?.contiguous()?)?;
        let best = scores.max(D::Minus1)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        let which = scores.argmax(D::Minus1)?.to_device(&Device::Cpu)?.to_vec2::<u32>()?;
        let count = count.min(others.len());
        let rows = best.into_iter().zip(which).map(|(best, which)| {
            let mut order: Vec<usize> = (0..others.len()).collect();
            // Of equal ones the first in the picture is merged first.
            order.sort_by(|&a, &b| best[b].total_cmp(&best[a]));
            let (merged, unmerged) = order.split_at(count);
            let merged = merged.iter().map(|&i| (others[i], which[i] as usize)).collect();
            (unmerged.iter().map(|&i| others[i]).collect(), merged)
        });
        Ok(Self { tokens, rows: rows.collect(), kept })
    }

    /// [B, N, C] with the merged tokens gone: those that stay besides, then the squares', each the mean of what it stands for.
    fn merge(&self, x: &Candle) -> CandleResult<Candle> {
        let (_, _, channels) = x.dims3()?;
        let values = x.to_device(&Device::Cpu)?.flatten(1, 2)?.to_vec2::<f32>()?;
        let mut merged = Vec::new();
        for (values, (besides, joined)) in values.iter().zip(&self.rows) {
            let token = |place: usize| &values[place * channels..][..channels];
            merged.extend(besides.iter().flat_map(|&place| token(place)));
            let mut sums: Vec<f32> =
                self.kept.iter().flat_map(|&place| token(place)).copied().collect();
            let mut counts = vec![1f32; self.kept.len()];
            for &(place, into) in joined {
                let sum = &mut sums[into * channels..][..channels];
                sum.iter_mut().zip(token(place)).for_each(|(sum, value)| *sum += value);
                counts[into] += 1.0;
            }
            for (sum, count) in sums.chunks_mut(channels.max(1)).zip(counts) {
                sum.iter_mut().for_each(|sum| *sum /= count);
            }
            merged.extend(sums);
        }
        let rows = self.rows.len();
        let each = merged.len() / (rows * channels).max(1);
        Candle::from_vec(merged, (rows, each, channels), x.device())
    }

    /// The way back from [`Matched::merge`]: a token that was merged has what the one has that it joined.
    fn unmerge(&self, y: &Candle) -> CandleResult<Candle> {
        let (rows, _, channels) = y.dims3()?;
        let values = y.to_device(&Device::Cpu)?.flatten(1, 2)?.to_vec2::<f32>()?;
        let mut all = vec![0f32; rows * self.tokens * channels];
        let pictures = all.chunks_mut((self.tokens * channels).max(1));
        for ((values, (besides, joined)), picture) in values.iter().zip(&self.rows).zip(pictures) {
            let mut put = |place: usize, from: usize| {
                picture[place * channels..][..channels]
                    .copy_from_slice(&values[from * channels..][..channels]);
            };
            let squares = besides.len();
            besides.iter().enumerate().for_each(|(from, &place)| put(place, from));
            self.kept.iter().enumerate().for_each(|(i, &place)| put(place, squares + i));
            joined.iter().for_each(|&(place, into)| put(place, squares + into));
        }
        Candle::from_vec(all, (rows, self.tokens, channels), y.device())
    }
}

/// Lets tokens that are alike ask as one in the self-attention of the outermost level: quicker, and a little other.
#[derive(Inputs)]
#[node(category = "model_patches/unet")]
pub struct TomePatchModel {
    /// The U-Net.
    model: Model,
    /// The share of the tokens that is merged into others.
    #[widget(default = 0.3, min = 0.0, max = 1.0, step = 0.01)]
    ratio: f64,
}

impl Node for TomePatchModel {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let patch = Object::new(Merging { ratio: self.ratio });
        patched(cx, &self.model, vec![Patch::new("self_attention", patch)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_alike_are_merged_and_come_back() -> Result<()> {
        // A picture of 2 × 4; of each square the first stays: tokens 0 and 2.
        let values = [
            [1.0f32, 0.0],
            [3.0, 0.3],
            [0.0, 1.0],
            [1.0, 1.0],
            [0.0, 2.0],
            [-1.0, 0.2],
            [0.1, 4.0],
            [2.0, 2.1],
        ];
        let x = Candle::new(&values, &Device::Cpu)?.unsqueeze(0)?;
        let matched = Matched::of(&x, (2, 4), 3)?;
        // The cosines to the nearer of both, by hand: 1 → 0 0.995, 3 → 0.707, 4 → 2 1, 5 → 2 0.196, 6 → 2 0.9997,
        // 7 → 2 0.724. The three largest go.
        assert_eq!(matched.rows, [(vec![7, 3, 5], vec![(4, 1), (6, 1), (1, 0)])]);
        let merged: Vec<Vec<f32>> = matched.merge(&x)?.squeeze(0)?.to_vec2()?;
        let expected = [[2.0, 2.1], [1.0, 1.0], [-1.0, 0.2], [2.0, 0.15], [0.1 / 3.0, 7.0 / 3.0]];
        for (found, expected) in merged.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
        let back: Vec<Vec<f32>> = matched.unmerge(&matched.merge(&x)?)?.squeeze(0)?.to_vec2()?;
        let (first, second) = ([2.0, 0.15], [0.1 / 3.0, 7.0 / 3.0]);
        let expected = [first, first, second, [1.0, 1.0], second, [-1.0, 0.2], second, [2.0, 2.1]];
        for (found, expected) in back.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
        Ok(())
    }
}
