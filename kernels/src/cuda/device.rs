//! Plans on a GPU: our PTX in candle's context and on its stream.

use std::ffi::c_void;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
    SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{DType, Layout, Result, bail};
use half::{bf16, f16};

use super::{Arg, Plan, Type};

/// The PTX of a folder's `kernel.cu`, which build.rs compiled.
fn ptx(kernel: &str) -> &'static str {
    macro_rules! kernels {
        ($($name:literal)*) => {
            match kernel {
                $($name => include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),)*
                // A plan names the folder that it stands in.
                _ => unreachable!("no kernel {kernel}"),
            }
        };
    }
    kernels! {
        "activation" "attention" "conv2d" "geglu" "group_norm" "layer_norm" "linear" "linear_combination"
        "low_rank_update" "upsample_nearest2d"
    }
}

/// The number type of activations.
///
/// # Errors
/// It is not f32, f16 or bf16.
pub(crate) fn number_type(storage: &CudaStorage, op: &str) -> Result<Type> {
    match storage.dtype() {
        DType::F32 => Ok(Type::F32),
        DType::F16 => Ok(Type::F16),
        DType::BF16 => Ok(Type::BF16),
        other => bail!("{op} computes in f32, f16 or bf16 on a GPU, the input is {other:?}"),
    }
}

/// A contiguous input of a kernel: where it is, and the number of its first value there.
pub(crate) struct Input<'a> {
    storage: Held<'a>,
    start: usize,
}

enum Held<'a> {
    Lent(&'a CudaStorage),
    Converted(CudaStorage),
}

impl<'a> Input<'a> {
    /// # Errors
    /// The tensor is not contiguous.
    pub(crate) fn new(storage: &'a CudaStorage, layout: &Layout, op: &str) -> Result<Input<'a>> {
        match layout.contiguous_offsets() {
            Some((start, _)) => Ok(Input { storage: Held::Lent(storage), start }),
            None => bail!("{op} needs a contiguous input, the layout is {layout:?}"),
        }
    }

    /// A tensor that the kernel finds its way in by strides.
    pub(crate) fn strided(storage: &'a CudaStorage, layout: &Layout) -> Input<'a> {
        Input { storage: Held::Lent(storage), start: layout.start_offset() }
    }

    /// A weight in the activations' type: as it is, or converted for this call where a file mixes types.
    ///
    /// # Errors
    /// The tensor is not contiguous, or CUDA's.
    pub(crate) fn weight(
        storage: &'a CudaStorage,
        layout: &Layout,
        number_type: Type,
        op: &str,
    ) -> Result<Input<'a>> {
        let dtype = match number_type {
            Type::F32 => DType::F32,
            Type::F16 => DType::F16,
            Type::BF16 => DType::BF16,
        };
        if storage.dtype() == dtype {
            return Input::new(storage, layout, op);
        }
        Ok(Input { storage: Held::Converted(storage.to_dtype(layout, dtype)?), start: 0 })
    }

    pub(crate) fn storage(&self) -> &CudaStorage {
        match &self.storage {
            Held::Lent(storage) => storage,
            Held::Converted(storage) => storage,
        }
    }

    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Whether it begins at a multiple of 16 bytes; an allocation of CUDA's does.
    pub(crate) fn is_aligned(&self) -> bool {
        (self.start * self.storage().dtype().size_in_bytes()).is_multiple_of(16)
    }
}

/// Runs a plan; the output has `values` values.
///
/// # Errors
/// CUDA's.
pub(crate) fn run(
    plan: &Plan,
    inputs: &[Input],
    (number_type, values): (Type, usize),
) -> Result<CudaStorage> {
    match number_type {
        Type::F32 => run_typed::<f32>(plan, inputs, values),
        Type::F16 => run_typed::<f16>(plan, inputs, values),
        Type::BF16 => run_typed::<bf16>(plan, inputs, values),
    }
}

/// Where each input's values begin, and what ends their use: it must live until everything is launched.
fn addresses<'a>(
    inputs: &'a [Input],
    stream: &'a CudaStream,
    op: &str,
) -> Result<(Vec<u64>, Vec<SyncOnDrop<'a>>)> {
    let mut addresses = (vec![], vec![]);
    for input in inputs {
        let (address, used) = match &input.storage().slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(stream),
            CudaStorageSlice::F16(slice) => slice.device_ptr(stream),
            CudaStorageSlice::BF16(slice) => slice.device_ptr(stream),
            _ => bail!("{op}: an input is not f32, f16 or bf16"),
        };
        let size = input.storage().dtype().size_in_bytes();
        addresses.0.push(address + (input.start * size) as u64);
        addresses.1.push(used);
    }
    Ok(addresses)
}

/// Lets another library compute on candle's stream: `launch` is given the stream, the inputs' addresses, the output's,
/// and what gives it memory to work in until the stream is done with it.
///
/// # Errors
/// CUDA's, and those of `launch`.
pub(crate) fn with_addresses(
    number_type: Type,
    inputs: &[Input],
    values: usize,
    launch: impl FnOnce(*mut c_void, &[u64], u64, &mut dyn FnMut(usize) -> Result<u64>) -> Result<()>,
) -> Result<CudaStorage> {
    match number_type {
        Type::F32 => with_addresses_typed::<f32>(inputs, values, launch),
        Type::F16 => with_addresses_typed::<f16>(inputs, values, launch),
        Type::BF16 => with_addresses_typed::<bf16>(inputs, values, launch),
    }
}

fn with_addresses_typed<T: CudaDType + DeviceRepr>(
    inputs: &[Input],
    values: usize,
    launch: impl FnOnce(*mut c_void, &[u64], u64, &mut dyn FnMut(usize) -> Result<u64>) -> Result<()>,
) -> Result<CudaStorage> {
    let Some(first) = inputs.first() else { bail!("a library is asked for nothing") };
    let device = first.storage().device().clone();
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the library writes every value of the output before anything reads it, in the stream's own order. CUDA
    // allocates no empty memory.
    let mut output: CudaSlice<T> = unsafe { device.alloc(values.max(1))? };
    if values > 0 {
        let (addresses, mut uses) = addresses(inputs, &stream, "a library")?;
        let (output_address, output_used) = output.device_ptr_mut(&stream);
        uses.push(output_used);
        // Freed in the stream's order, so after what is launched here.
        let mut workspaces: Vec<CudaSlice<u8>> = vec![];
        launch(stream.cu_stream().cast(), &addresses, output_address, &mut |bytes| {
            // SAFETY: the library reads of its workspace what it has written.
            let workspace = unsafe { device.alloc::<u8>(bytes.max(1))? };
            let address = workspace.device_ptr(&stream).0;
            workspaces.push(workspace);
            Ok(address)
        })?;
    }
    Ok(CudaStorage::wrap_cuda_slice(output, device))
}

fn run_typed<T: CudaDType + DeviceRepr>(
    plan: &Plan,
    inputs: &[Input],
    values: usize,
) -> Result<CudaStorage> {
    let Some(first) = inputs.first() else { bail!("{}: a plan without an input", plan.kernel) };
    let device = first.storage().device().clone();
    let stream = device.cuda_stream();
    // SAFETY: the kernels write every value of the output before anything reads it, and of the scratch memory what
    // a later launch of the plan reads; both are on the stream's own order. CUDA allocates no empty memory.
    let (mut output, mut scratch): (CudaSlice<T>, CudaSlice<f32>) =
        unsafe { (device.alloc(values.max(1))?, device.alloc(plan.scratch.max(1))?) };
    if values > 0 {
        let (addresses, mut uses) = addresses(inputs, &stream, plan.kernel)?;
        let (output_address, output_used) = output.device_ptr_mut(&stream);
        let (scratch_address, scratch_used) = scratch.device_ptr_mut(&stream);
        uses.extend([output_used, scratch_used]);
        let module = format!("kosmograph_{}", plan.kernel);
        for launch in &plan.launches {
            // CUDA reads as many bytes of each as the parameter has, and all of its processors are little-endian.
            let arguments: Vec<u64> = launch
                .arguments
                .iter()
                .map(|argument| match *argument {
                    Arg::Input(number) => addresses[number],
                    Arg::Output => output_address,
                    Arg::Scratch => scratch_address,
                    Arg::Null => 0,
                    Arg::Int(value) => i64::from(value) as u64,
                    Arg::Long(value) => value as u64,
                    Arg::Float(value) => u64::from(value.to_bits()),
                })
                .collect();
            let function =
                device.get_or_load_custom_func(&launch.function, &module, ptx(plan.kernel))?;
            let mut builder = function.builder();
            for argument in &arguments {
                builder.arg(argument);
            }
            let [x, y, z] = launch.grid.map(|blocks| blocks as u32);
            let size = LaunchConfig {
                grid_dim: (x, y, z),
                block_dim: (launch.threads as u32, 1, 1),
                shared_mem_bytes: 0,
            };
            // SAFETY: the arguments are those of the entry point, in its order: the tests run the same plans
            // against the same source. The addresses are of live memory on this device.
            unsafe { builder.launch(size) }.w()?;
        }
    }
    Ok(CudaStorage::wrap_cuda_slice(output, device))
}
