//! Every CUDA twin beside its CPU twin, through the public functions, on a GPU. In a build without the feature `cuda` the
//! tests are ignored; in one with it there must be a GPU.
//!
//! With `KOSMOGRAPH_GPU_DUMP` a folder, every case's inputs and output are written there, for bench/gpu/torch_f64.py, which
//! computes them in PyTorch in f64. `KOSMOGRAPH_GPU_TEST=cpu` with `--ignored` takes the CPU for the GPU, to try the test itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor};
use kosmograph_kernels as kernels;

/// Runs `test` for every number type on GPU number 0.
fn for_each_type(test: impl Fn(&Comparison) -> Result<()>) -> Result<()> {
    let wanted = std::env::var("KOSMOGRAPH_GPU_TEST").unwrap_or_default();
    let gpu = if wanted == "cpu" { Device::Cpu } else { Device::new_cuda(0)? };
    let mut wrong = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let comparison = Comparison { gpu: gpu.clone(), dtype, wrong: RefCell::default() };
        test(&comparison)?;
        wrong.append(&mut comparison.wrong.into_inner());
    }
    // All cases were tried: on a machine that is lent by the hour one wrong kernel must not hide the next.
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

struct Comparison {
    gpu: Device,
    dtype: DType,
    /// A sentence for each case that failed.
    wrong: RefCell<Vec<String>>,
}

impl Comparison {
    /// Runs `kernel` on `inputs` on both; the first `activations` of them have the type that is compared, the
    /// others are f32. The bound: the result's rounding to the type, and `sums` of the largest value. What is
    /// wrong is noted, and an error of the GPU as well.
    fn compare(
        &self,
        name: &str,
        inputs: &[Tensor],
        activations: usize,
        sums: f64,
        kernel: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        let verdict = self.verdict(name, inputs, activations, sums, kernel);
        if let Some(wrong) = verdict.unwrap_or_else(|error| Some(error.to_string())) {
            println!("{name:<52} {:?}: WRONG: {wrong}", self.dtype);
            self.wrong.borrow_mut().push(format!("{name} {:?}: {wrong}", self.dtype));
        }
        Ok(())
    }

    fn verdict(
        &self,
        name: &str,
        inputs: &[Tensor],
        activations: usize,
        sums: f64,
        kernel: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Option<String>> {
        let rounded = |(i, tensor): (usize, &Tensor)| match i < activations {
            true => tensor.to_dtype(self.dtype),
            false => Ok(tensor.clone()),
        };
        let rounded = inputs.iter().enumerate().map(rounded).collect::<Result<Vec<_>>>()?;
        let on_gpu = rounded.iter().map(|tensor| tensor.to_device(&self.gpu));
        let found = kernel(&on_gpu.collect::<Result<Vec<_>>>()?)?;
        if found.dtype() != self.dtype {
            return Ok(Some(format!("its result is {:?}", found.dtype())));
        }
        let found = found.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        self.dump(name, &rounded, &found)?;
        let wide = rounded.iter().map(|tensor| tensor.to_dtype(DType::F32));
        let want = kernel(&wide.collect::<Result<Vec<_>>>()?)?;
        if found.dims() != want.dims() {
            return Ok(Some(format!("its shape is {:?}, not {:?}", found.dims(), want.dims())));
        }
        let largest = |tensor: Tensor| -> Result<f64> {
            Ok(f64::from(tensor.abs()?.flatten_all()?.max(D::Minus1)?.to_scalar::<f32>()?))
        };
        let error = largest((found - &want)?)?;
        let rounding = match self.dtype {
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            _ => 2f64.powi(-24),
        };
        let bound = largest(want)? * (rounding + sums.max(2.0 * rounding));
        println!("{name:<52} {:?}: {error:.1e} of {bound:.1e}", self.dtype);
        // A NaN is no better than a large error.
        let is_right = error <= bound;
        Ok((!is_right).then(|| format!("{error:.2e} is more than {bound:.2e}")))
    }
}

impl Comparison {
    fn dump(&self, name: &str, inputs: &[Tensor], found: &Tensor) -> Result<()> {
        let Ok(folder) = std::env::var("KOSMOGRAPH_GPU_DUMP") else { return Ok(()) };
        let named = |(i, tensor): (usize, &Tensor)| Ok((format!("input{i}"), tensor.contiguous()?));
        let mut tensors =
            inputs.iter().enumerate().map(named).collect::<Result<HashMap<_, _>>>()?;
        tensors.insert("found".into(), found.clone());
        let file = name.replace('/', "by");
        let path = Path::new(&folder).join(format!("{file}.{}.safetensors", self.dtype.as_str()));
        candle_core::safetensors::save(&tensors, path)
    }
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1., shape, &Device::Cpu)
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "wants a GPU and a build for it: docs/cuda.md")]
fn convolutions() -> Result<()> {
    for_each_type(|comparison| {
        for (batch, input, output, size, kernel, stride) in [
            (2, 4, 320, 64, 3, 1),
            (2, 320, 320, 64, 3, 1),
            // Parts of K: 3, 6, 6 and 13.
            (1, 1280, 1280, 16, 3, 1),
            (2, 1280, 1280, 8, 3, 1),
            (2, 2560, 1280, 8, 1, 1),
            (2, 1280, 1280, 4, 3, 1),
            (2, 320, 320, 64, 3, 2),
            (2, 640, 320, 33, 1, 1),
            (1, 128, 3, 127, 3, 1),
            (1, 3, 768, 224, 14, 14),
        ] {
            let depth = (input * kernel * kernel) as f64;
            let inputs = [
                random(&[batch, input, size, size])?,
                random(&[output, input, kernel, kernel])?.affine(depth.powf(-0.5), 0.)?,
                random(&[output])?,
            ];
            let padding = usize::from(kernel == 3);
            let name =
                format!("conv2d {kernel}x{kernel} / {stride}, {input} to {output} at {size}");
            // The CPU's 3 x 3 is Winograd's, which is off by 1e-5 by itself.
            comparison.compare(&name, &inputs, 2, 2e-5, |t| {
                kernels::conv2d(&t[0], &t[1], Some(&t[2]), stride, padding)
            })?;
            let [x, weight, bias] = inputs;
            let inputs = [x, weight, random(&[batch, output])?, bias];
            let name = name.replace("conv2d", "conv2d_add_to_channels");
            comparison.compare(&name, &inputs, 3, 2e-5, |t| {
                kernels::conv2d_add_to_channels(&t[0], &t[1], Some(&t[3]), &t[2], stride, padding)
            })?;
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "wants a GPU and a build for it: docs/cuda.md")]
fn linear_layers() -> Result<()> {
    for_each_type(|comparison| {
        for (rows, input, output) in
            [(8192, 320, 2560), (1, 1280, 320), (154, 768, 320), (77, 2048, 8192)]
        {
            let weight = random(&[output, input])?.affine((input as f64).powf(-0.5), 0.)?;
            let inputs = [random(&[rows, input])?, weight, random(&[output])?];
            let name = format!("linear {rows} x {input} to {output}");
            comparison
                .compare(&name, &inputs, 2, 1e-5, |t| kernels::linear(&t[0], &t[1], Some(&t[2])))?;
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "wants a GPU and a build for it: docs/cuda.md")]
fn attentions() -> Result<()> {
    for_each_type(|comparison| {
        for (heads, queries, keys, width) in [
            (8, 4096, 4096, 40),
            (8, 4096, 77, 40),
            (8, 1024, 1024, 80),
            (8, 64, 77, 160),
            (16, 257, 257, 64),
            (1, 4096, 4096, 512),
            (12, 77, 77, 64),
        ] {
            let split = |length: usize| random(&[2, length, heads, width])?.transpose(1, 2);
            let inputs = [split(queries)?, split(keys)?, split(keys)?];
            let name = format!("attention {heads} heads of {width}, {queries} x {keys}");
            let scale = (width as f64).powf(-0.5);
            comparison.compare(&name, &inputs, 3, 1e-5, |t| {
                kernels::attention(&t[0], &t[1], &t[2], None, scale)
            })?;
            if queries == keys && queries < 300 {
                let hidden = |i: usize| if i % keys > i / keys { f32::NEG_INFINITY } else { 0. };
                let mask: Vec<f32> = (0..queries * keys).map(hidden).collect();
                let mask = Tensor::from_vec(mask, (queries, keys), &Device::Cpu)?;
                let inputs = [&inputs[..], &[mask]].concat();
                comparison.compare(&format!("{name}, causal"), &inputs, 3, 1e-5, |t| {
                    kernels::attention(&t[0], &t[1], &t[2], Some(&t[3]), scale)
                })?;
            }
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "wants a GPU and a build for it: docs/cuda.md")]
fn norms() -> Result<()> {
    for_each_type(|comparison| {
        for (channels, size) in [(320, 64), (1280, 8), (128, 512)] {
            let inputs =
                [random(&[1, channels, size, size])?, random(&[channels])?, random(&[channels])?];
            let name = format!("group_norm {channels} at {size}");
            comparison.compare(&name, &inputs, 1, 1e-6, |t| {
                kernels::group_norm(&t[0], &t[1], &t[2], 32, 1e-5)
            })?;
            comparison.compare(&format!("{name}, silu"), &inputs, 1, 1e-6, |t| {
                kernels::group_norm_silu(&t[0], &t[1], &t[2], 32, 1e-5)
            })?;
        }
        for (rows, width) in [(8192, 320), (77, 768), (160, 2048)] {
            let inputs = [random(&[rows, width])?, random(&[width])?, random(&[width])?];
            comparison.compare(&format!("layer_norm {rows} x {width}"), &inputs, 1, 1e-6, |t| {
                kernels::layer_norm(&t[0], &t[1], &t[2], 1e-5)
            })?;
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "wants a GPU and a build for it: docs/cuda.md")]
fn element_wise() -> Result<()> {
    for_each_type(|comparison| {
        let x = [random(&[2, 77, 1280])?];
        comparison.compare("silu", &x, 1, 1e-6, |t| kernels::silu(&t[0]))?;
        comparison.compare("gelu_erf", &x, 1, 1e-6, |t| kernels::gelu_erf(&t[0]))?;
        comparison.compare("quick_gelu", &x, 1, 1e-6, |t| kernels::quick_gelu(&t[0]))?;
        comparison.compare("geglu", &x, 1, 1e-6, |t| kernels::geglu(&t[0]))?;
        let x = (0..5).map(|_| random(&[1, 4, 64, 64])).collect::<Result<Vec<_>>>()?;
        comparison.compare("linear_combination", &x, 5, 1e-6, |t| {
            let factors = [0.5, 1.5, -0.25, 2.0, -1.0];
            kernels::linear_combination(&factors.into_iter().zip(t).collect::<Vec<_>>())
        })?;
        comparison.compare("linear_combination_from", &x[..2], 2, 1e-6, |t| {
            kernels::linear_combination_from(&t[0], &[(7.5, &t[1])])
        })?;
        let x = [random(&[2, 320, 33, 32])?];
        comparison.compare("upsample_nearest2d", &x, 1, 0., |t| {
            kernels::upsample_nearest2d(&t[0], 65, 64)
        })
    })
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "wants a GPU and a build for it: docs/cuda.md")]
fn low_rank_updates() -> Result<()> {
    for_each_type(|comparison| {
        let inputs = [random(&[1280, 320])?, random(&[1280, 16])?, random(&[16, 320])?];
        comparison.compare("low_rank_update", &inputs, 1, 1e-6, |t| {
            kernels::low_rank_update(&t[0], &t[1], &t[2])
        })
    })
}
