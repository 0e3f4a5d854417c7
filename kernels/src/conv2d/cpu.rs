use rayon::prelude::*;

/// The sizes of one convolution: x [B, C, H, W] and w [O, C, kH, kW] to y [B, O, oH, oW].
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) out_channels: usize,
    pub(super) kernel_h: usize,
    pub(super) kernel_w: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
}

impl Sizes {
    /// What a profile calls it.
    pub(super) fn name(self) -> &'static str {
        match (self.kernel_h, self.kernel_w, self.stride) {
            (3, 3, 1) => "conv2d 3x3",
            (1, 1, 1) => "conv2d 1x1",
            _ => "conv2d, others",
        }
    }

    pub(super) fn operations(self) -> usize {
        let outputs = self.batch * self.out_channels * self.out_height * self.out_width;
        2 * outputs * self.channels * self.kernel_h * self.kernel_w
    }
}

/// Values of the patch matrix of one task: 1 MiB, what a second-level cache holds.
const PATCH_VALUES: usize = 1 << 18;
/// Pixels that a task has at least, so that reading the weights pays.
const MIN_PIXELS: usize = 128;

/// The output's start, for tasks that write to parts of it.
#[derive(Clone, Copy)]
struct Output(*mut f32);
// SAFETY: tasks write through the pointer only where no other task does: see `conv2d`.
unsafe impl Send for Output {}
// SAFETY: as for `Send`.
unsafe impl Sync for Output {}

impl Output {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// y = w ⋆ x + bias, as products of the weights [O, K] with matrices of patches [K, pixels],
/// K = C·kH·kW. A task is a few rows of one sample's output; its patches stay in the cache.
pub(super) fn conv2d(x: &[f32], w: &[f32], bias: Option<&[f32]>, s: Sizes) -> Vec<f32> {
    let plane = s.out_height * s.out_width;
    let k = s.channels * s.kernel_h * s.kernel_w;
    let mut y = match bias {
        Some(bias) => {
            let sample = bias.iter().flat_map(|&b| std::iter::repeat_n(b, plane));
            let sample: Vec<f32> = sample.collect();
            sample.repeat(s.batch)
        }
        None => vec![0f32; s.batch * s.out_channels * plane],
    };
    if y.is_empty() || k == 0 {
        return y;
    }
    let pixels = (PATCH_VALUES / k).max(MIN_PIXELS);
    let rows = (pixels / s.out_width).clamp(1, s.out_height);
    let bands = s.out_height.div_ceil(rows);
    let output = Output(y.as_mut_ptr());
    (0..s.batch * bands).into_par_iter().for_each_init(Vec::new, |patches, task| {
        let (sample, band) = (task / bands, task % bands);
        let first_row = band * rows;
        let rows = rows.min(s.out_height - first_row);
        let pixels = rows * s.out_width;
        let x = &x[sample * s.channels * s.height * s.width..][..s.channels * s.height * s.width];
        patches.clear();
        patches.resize(k * pixels, 0f32);
        fill_patches(patches, x, first_row, rows, s);
        let y = output.at(sample * s.out_channels * plane + first_row * s.out_width);
        // SAFETY: w is [O, K] and `patches` [K, pixels], both whole and row by row. y is O rows of
        // `pixels` values, `plane` apart, within the output: the band's part of every channel of
        // the sample, which no other task has. The output outlives the loop.
        unsafe {
            gemm::gemm(
                s.out_channels,
                pixels,
                k,
                y,
                1,
                plane as isize,
                true,
                w.as_ptr(),
                1,
                k as isize,
                patches.as_ptr(),
                1,
                pixels as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
    y
}

/// Row (c, ky, kx) of `patches` [K, pixels] is what the weight (c, ky, kx) is multiplied with at
/// each pixel of the output's rows `first_row`..`first_row + rows`; zeros are there already.
fn fill_patches(patches: &mut [f32], x: &[f32], first_row: usize, rows: usize, s: Sizes) {
    let pixels = rows * s.out_width;
    for (i, patch) in patches.chunks_exact_mut(pixels).enumerate() {
        let (kx, ky) = (i % s.kernel_w, i / s.kernel_w % s.kernel_h);
        let channel = i / (s.kernel_w * s.kernel_h);
        let plane = &x[channel * s.height * s.width..][..s.height * s.width];
        // The columns of the output whose source column lies within x.
        let first = s.padding.saturating_sub(kx).div_ceil(s.stride);
        let end = (s.width + s.padding).saturating_sub(kx).div_ceil(s.stride).min(s.out_width);
        if first >= end {
            continue;
        }
        for (row, patch) in patch.chunks_exact_mut(s.out_width).enumerate() {
            let Some(source_row) = ((first_row + row) * s.stride + ky).checked_sub(s.padding)
            else {
                continue;
            };
            if source_row >= s.height {
                continue;
            }
            let source = &plane[source_row * s.width..][..s.width];
            let start = first * s.stride + kx - s.padding;
            let patch = &mut patch[first..end];
            if s.stride == 1 {
                patch.copy_from_slice(&source[start..start + patch.len()]);
            } else {
                for (value, &source) in
                    patch.iter_mut().zip(source[start..].iter().step_by(s.stride))
                {
                    *value = source;
                }
            }
        }
    }
}
