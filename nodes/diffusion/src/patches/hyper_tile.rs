//! HyperTile: self-attention of the outer levels within tiles of the picture, which is quicker for large ones.

use candle_core::{Result as CandleResult, Tensor as Candle};
use node::interface::{self, AttentionCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

struct Tiled {
    /// The least side of a tile, in latent pixels.
    tile: usize,
    /// How many of the smallest possible tilings may be taken.
    options: usize,
    /// Down to which level, 0 the outermost.
    depth: usize,
    /// Whether deeper levels have larger tiles.
    scale_depth: bool,
}

impl Export for Tiled {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Tiled: marker::AttentionPatch];
}

impl Tiled {
    /// The parts of an axis of `size` tokens: into the smallest tiles of at least `least`, or, of several options, one by
    /// `chance`.
    ///
    /// ComfyUI's draw never takes the last option; so neither does this.
    fn parts(&self, size: usize, least: usize, chance: u64) -> usize {
        let sides = (least.min(size).max(1)..=size).filter(|side| size.is_multiple_of(*side));
        let parts: Vec<usize> = sides.take(self.options).map(|side| size / side).collect();
        match parts.len() {
            0 => 1,
            1 | 2 => parts[0],
            several => parts[(chance % (several as u64 - 1)) as usize],
        }
    }

    /// How the tokens of a call are cut: parts of both axes, as ComfyUI counts them, which takes the picture's width for its
    /// height; `None` where they are not.
    fn cut(&self, call: &AttentionCall) -> Option<[usize; 2]> {
        let tokens = call.height * call.width;
        let (height, width) = call.latent.unwrap_or((call.height, call.width));
        if call.x.shape().get(1) != Some(&tokens) {
            return None;
        }
        // A level counts where halving gives its tokens exactly.
        let level = (0..=self.depth).find(|level| {
            let share = 2f64.powi(*level as i32);
            height as f64 / share * (width as f64 / share) == tokens as f64
        })?;
        let factor = if self.scale_depth { 1 << level } else { 1 };
        let least = self.tile * factor;
        let chance = chance(&call.block, call.sigma);
        let first = self.parts(call.width, least, chance);
        let second = self.parts(call.height, least, chance >> 32);
        (first * second > 1).then_some([first, second])
    }
}

/// The same for the same place and noise level, so that a run can be repeated.
fn chance(block: &str, sigma: f64) -> u64 {
    let bytes = block.bytes().chain(sigma.to_bits().to_le_bytes());
    // FNV-1a.
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Tokens [B, N, C] of `h` × `w`, in tiles: [B · nh · nw, h/nh · w/nw, C].
fn into_tiles(x: &Candle, [h, w]: [usize; 2], [nh, nw]: [usize; 2]) -> CandleResult<Candle> {
    let (batch, _, channels) = x.dims3()?;
    let (th, tw) = (h / nh, w / nw);
    let tiles = x.reshape(&[batch, nh, th, nw, tw, channels][..])?.transpose(2, 3)?;
    tiles.contiguous()?.reshape((batch * nh * nw, th * tw, channels))
}

/// The way back from [`into_tiles`].
fn out_of_tiles(x: &Candle, [h, w]: [usize; 2], [nh, nw]: [usize; 2]) -> CandleResult<Candle> {
    let (rows, _, channels) = x.dims3()?;
    let (batch, th, tw) = (rows / (nh * nw), h / nh, w / nw);
    let tiles = x.reshape(&[batch, nh, nw, th, tw, channels][..])?.transpose(2, 3)?;
    tiles.contiguous()?.reshape((batch, h * w, channels))
}

impl interface::PatchAttention for Tiled {
    fn patch_attention(&self, cx: &Context<'_>, call: &AttentionCall) -> Result<Tensor> {
        let Some(parts) = self.cut(call) else {
            let x = call.x.clone();
            return call.attention.attend(cx, x, call.contexts(), None, false).map(|(y, _)| y);
        };
        let device = device(&cx.device())?;
        let size = [call.width, call.height];
        let tiles = into_tiles(&import(&call.x, &device)?, size, parts)?;
        // What a tile attends to is, as in ComfyUI, as many tokens of the context one after the other: the tile itself where
        // the second axis is whole.
        let strips = |context: &Tensor| {
            let context = import(context, &device)?;
            let (batch, tokens, channels) = context.dims3()?;
            let count = parts[0] * parts[1];
            export(&context.contiguous()?.reshape((batch * count, tokens / count, channels))?)
        };
        let values_of = call.value_context.as_ref().map(strips).transpose()?;
        let (tiles, strips) = (export(&tiles)?, strips(&call.context)?);
        let (y, _) = call.attention.attend(cx, tiles, (Some(strips), values_of), None, false)?;
        export(&out_of_tiles(&import(&y, &device)?, size, parts)?)
    }
}

/// Lets the self-attention of the outer levels look no further than its tile.
#[derive(Inputs)]
#[node(category = "model_patches/unet")]
pub struct HyperTile {
    /// The U-Net.
    model: Model,
    /// The least side of a tile, in pixels.
    #[widget(default = 256, min = 1, max = 2048)]
    tile_size: i64,
    /// How many tilings may take turns.
    #[widget(default = 2, min = 1, max = 128)]
    swap_size: i64,
    /// Down to which level there are tiles; 0 is the outermost alone.
    #[widget(default = 0, min = 0, max = 10)]
    max_depth: i64,
    /// Whether deeper levels have larger tiles.
    #[widget(default = false)]
    scale_depth: bool,
}

impl Node for HyperTile {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let patch = Tiled {
            tile: (self.tile_size as usize).max(32) / 8,
            options: self.swap_size as usize,
            depth: self.max_depth as usize,
            scale_depth: self.scale_depth,
        };
        patched(cx, &self.model, vec![Patch::new("self_attention", Object::new(patch))])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn tiles_come_back_as_they_were() -> CandleResult<()> {
        let x = Candle::arange(0f32, 24.0, &Device::Cpu)?.reshape((1, 24, 1))?;
        let tiles = into_tiles(&x, [4, 6], [2, 3])?;
        assert_eq!(tiles.dims(), [6, 4, 1]);
        // einops: b (nh h nw w) c -> (b nh nw) (h w) c.
        let second: Vec<f32> = tiles.get(1)?.flatten_all()?.to_vec1()?;
        assert_eq!(second, [2.0, 3.0, 8.0, 9.0]);
        let back: Vec<f32> = out_of_tiles(&tiles, [4, 6], [2, 3])?.flatten_all()?.to_vec1()?;
        assert_eq!(back, x.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn parts_are_the_largest_number_that_is_allowed() {
        let tiled = |options| Tiled { tile: 32, options, depth: 0, scale_depth: false };
        assert_eq!(tiled(1).parts(64, 32, 9), 2);
        assert_eq!(tiled(2).parts(96, 32, 9), 3);
        assert_eq!(tiled(2).parts(24, 32, 9), 1);
        assert_eq!(tiled(2).parts(67, 32, 9), 1);
        // 32, 48 and 96 divide 96: three parts, or two.
        assert_eq!([0, 1].map(|chance| tiled(3).parts(96, 32, chance)), [3, 2]);
    }
}
