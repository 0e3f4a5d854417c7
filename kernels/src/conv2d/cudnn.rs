//! Convolution by NVIDIA's cuDNN, where its library is on the machine: loaded when it is first asked for, so that no build
//! needs it. f32 stays f32 (no TF32); f16 and bf16 are multiplied on the tensor cores; sums are f32.
//!
//! The functions and their numbers are those of cuDNN 8 and 9, `cudnn_ops` and `cudnn_cnn` of its API reference.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

use candle_core::{Result, bail};
use libloading::Library;

use super::cpu::Sizes;
use crate::cuda::Type;

type Status = c_int;
/// A handle or a descriptor.
type Object = *mut c_void;

const NCHW: c_int = 0;
const CROSS_CORRELATION: c_int = 1;
const FLOAT: c_int = 0;
/// Memory for an algorithm to work in, at most: what a layer of Stable Diffusion at 512 × 512 has in activations.
const MOST_WORKSPACE: usize = 512 << 20;
/// More algorithms than there are.
const ALGORITHMS: usize = 16;

fn data_type(number_type: Type) -> c_int {
    match number_type {
        Type::F32 => FLOAT,
        Type::F16 => 2,
        Type::BF16 => 9,
    }
}

/// The tensor cores for halves; for f32 the arithmetic of f32 alone.
fn math_type(number_type: Type) -> c_int {
    match number_type {
        Type::F32 => 3,
        Type::F16 | Type::BF16 => 1,
    }
}

/// `cudnnConvolutionFwdAlgoPerf_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Performance {
    algorithm: c_int,
    status: Status,
    time: f32,
    memory: usize,
    determinism: c_int,
    math_type: c_int,
    reserved: [c_int; 3],
}

/// The way that a convolution is computed, and the bytes that it works in.
#[derive(Clone, Copy)]
struct Algorithm {
    number: c_int,
    memory: usize,
}

/// The library's functions that a convolution calls.
macro_rules! functions {
    ($($name:ident: $symbol:literal ($($argument:ty),*);)*) => {
        pub(super) struct Cudnn {
            $($name: unsafe extern "C" fn($($argument),*) -> Status,)*
            error_string: unsafe extern "C" fn(Status) -> *const c_char,
            /// The functions are its.
            _library: Library,
        }

        impl Cudnn {
            /// # Safety
            /// The library is cuDNN, or does as cuDNN does.
            ///
            /// # Errors
            /// It lacks a function.
            unsafe fn of(library: Library) -> std::result::Result<Cudnn, libloading::Error> {
                // SAFETY: the signatures are cuDNN's.
                unsafe {
                    Ok(Cudnn {
                        $($name: *library.get(concat!($symbol, "\0").as_bytes())?,)*
                        error_string: *library.get(b"cudnnGetErrorString\0")?,
                        _library: library,
                    })
                }
            }
        }
    };
}

functions! {
    create: "cudnnCreate" (*mut Object);
    destroy: "cudnnDestroy" (Object);
    set_stream: "cudnnSetStream" (Object, *mut c_void);
    create_tensor: "cudnnCreateTensorDescriptor" (*mut Object);
    set_tensor: "cudnnSetTensor4dDescriptor" (Object, c_int, c_int, c_int, c_int, c_int, c_int);
    destroy_tensor: "cudnnDestroyTensorDescriptor" (Object);
    create_filter: "cudnnCreateFilterDescriptor" (*mut Object);
    set_filter: "cudnnSetFilter4dDescriptor" (Object, c_int, c_int, c_int, c_int, c_int, c_int);
    destroy_filter: "cudnnDestroyFilterDescriptor" (Object);
    create_convolution: "cudnnCreateConvolutionDescriptor" (*mut Object);
    set_convolution: "cudnnSetConvolution2dDescriptor"
        (Object, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int);
    set_math_type: "cudnnSetConvolutionMathType" (Object, c_int);
    destroy_convolution: "cudnnDestroyConvolutionDescriptor" (Object);
    algorithms: "cudnnGetConvolutionForwardAlgorithm_v7"
        (Object, Object, Object, Object, Object, c_int, *mut c_int, *mut Performance);
    forward: "cudnnConvolutionForward"
        (Object, *const f32, Object, *const c_void, Object, *const c_void, Object, c_int, *mut c_void, usize,
         *const f32, Object, *mut c_void);
    add: "cudnnAddTensor" (Object, *const f32, Object, *const c_void, *const f32, Object, *mut c_void);
}

impl Cudnn {
    /// The machine's cuDNN; none where there is none, or where `KOSMOGRAPH_CUDNN` is `off`.
    ///
    /// # Errors
    /// There is a cuDNN, but one that lacks a function.
    #[cfg(feature = "cuda")]
    pub(super) fn get() -> Result<Option<&'static Cudnn>> {
        use std::sync::OnceLock;
        type Found = std::result::Result<Option<Cudnn>, String>;
        static FOUND: OnceLock<Found> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            if std::env::var_os("KOSMOGRAPH_CUDNN").is_some_and(|value| value == "off") {
                return Ok(None);
            }
            for name in ["libcudnn.so.9", "libcudnn.so.8", "cudnn64_9.dll", "cudnn64_8.dll"] {
                // SAFETY: what has this name is NVIDIA's; loading it only fills its tables.
                let Ok(library) = (unsafe { Library::new(name) }) else { continue };
                // SAFETY: as above.
                let functions = unsafe { Cudnn::of(library) };
                return functions.map(Some).map_err(|error| {
                    format!("{name} is not the cuDNN that this build knows: {error}. KOSMOGRAPH_CUDNN=off runs without it")
                });
            }
            Ok(None)
        });
        found.as_ref().map(Option::as_ref).map_err(|error| candle_core::Error::Msg(error.clone()))
    }

    fn checked(&self, function: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library's own text, which it keeps.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        bail!("conv2d: {function} answered {}", text.to_string_lossy())
    }

    /// Makes an object, to be destroyed by `destroy` when it goes out of use.
    fn object(
        &self,
        function: &str,
        create: unsafe extern "C" fn(*mut Object) -> Status,
        destroy: unsafe extern "C" fn(Object) -> Status,
    ) -> Result<Owned> {
        let mut object = null_mut();
        // SAFETY: a place for the object.
        self.checked(function, unsafe { create(&mut object) })?;
        Ok(Owned { object, destroy })
    }

    fn tensor(&self, number_type: Type, shape: [usize; 4]) -> Result<Owned> {
        let tensor =
            self.object("cudnnCreateTensorDescriptor", self.create_tensor, self.destroy_tensor)?;
        let [n, c, h, w] = ints(shape)?;
        // SAFETY: a tensor's descriptor and numbers.
        let status =
            unsafe { (self.set_tensor)(tensor.object, NCHW, data_type(number_type), n, c, h, w) };
        self.checked("cudnnSetTensor4dDescriptor", status)?;
        Ok(tensor)
    }

    /// A handle that works on `stream`.
    ///
    /// # Errors
    /// cuDNN's.
    pub(super) fn handle(&self, stream: *mut c_void) -> Result<Handle> {
        let owned = self.object("cudnnCreate", self.create, self.destroy)?;
        // SAFETY: the handle just made, and a stream of the current context.
        self.checked("cudnnSetStream", unsafe { (self.set_stream)(owned.object, stream) })?;
        Ok(Handle { owned, chosen: RefCell::default() })
    }

    /// y = w ⋆ x + bias, all of one number type. `workspace` gives memory of as many bytes as it is asked for.
    ///
    /// # Errors
    /// cuDNN's, or no algorithm of it does this in the memory there is.
    ///
    /// # Safety
    /// The addresses are those of contiguous tensors of the sizes and the number type on the handle's device, and what the
    /// workspace is lives until the stream has done what is asked here.
    pub(super) unsafe fn conv2d(
        &self,
        handle: &Handle,
        number_type: Type,
        s: Sizes,
        addresses: Addresses,
        workspace: impl FnOnce(usize) -> Result<u64>,
    ) -> Result<()> {
        let x = self.tensor(number_type, [s.batch, s.channels, s.height, s.width])?;
        let y = self.tensor(number_type, [s.batch, s.out_channels, s.out_height, s.out_width])?;
        let w =
            self.object("cudnnCreateFilterDescriptor", self.create_filter, self.destroy_filter)?;
        let [o, c, kh, kw] = ints([s.out_channels, s.channels, s.kernel_h, s.kernel_w])?;
        let convolution = self.object(
            "cudnnCreateConvolutionDescriptor",
            self.create_convolution,
            self.destroy_convolution,
        )?;
        let [padding, stride, ..] = ints([s.padding, s.stride, 0, 0])?;
        // SAFETY: descriptors of the kinds that the functions take.
        unsafe {
            let status = (self.set_filter)(w.object, data_type(number_type), NCHW, o, c, kh, kw);
            self.checked("cudnnSetFilter4dDescriptor", status)?;
            let status = (self.set_convolution)(
                convolution.object,
                padding,
                padding,
                stride,
                stride,
                1,
                1,
                CROSS_CORRELATION,
                FLOAT,
            );
            self.checked("cudnnSetConvolution2dDescriptor", status)?;
            let status = (self.set_math_type)(convolution.object, math_type(number_type));
            self.checked("cudnnSetConvolutionMathType", status)?;
        }
        let key = (number_type, s);
        let known = handle.chosen.borrow().get(&key).copied();
        let best = match known {
            Some(best) => best,
            None => {
                let descriptors = [&x, &w, &convolution, &y].map(|owned| owned.object);
                let best = self.choose(handle, number_type, s, descriptors)?;
                handle.chosen.borrow_mut().insert(key, best);
                best
            }
        };
        let room = if best.memory == 0 { null_mut() } else { workspace(best.memory)? as Object };
        // SAFETY: the caller's addresses, for the sizes that the descriptors were given.
        unsafe {
            let status = (self.forward)(
                handle.owned.object,
                &1.0,
                x.object,
                addresses.x as *const c_void,
                w.object,
                addresses.w as *const c_void,
                convolution.object,
                best.number,
                room,
                best.memory,
                &0.0,
                y.object,
                addresses.y as *mut c_void,
            );
            self.checked("cudnnConvolutionForward", status)?;
            if let Some(bias) = addresses.bias {
                let values = self.tensor(number_type, [1, s.out_channels, 1, 1])?;
                let (bias, to) = (bias as *const c_void, addresses.y as *mut c_void);
                let status =
                    (self.add)(handle.owned.object, &1.0, values.object, bias, &1.0, y.object, to);
                self.checked("cudnnAddTensor", status)?;
            }
        }
        Ok(())
    }
}

impl Cudnn {
    /// The likely fastest algorithm that is exact and has room; cuDNN's answer takes longer than a small convolution, so it
    /// is asked once for a handle and sizes. `descriptors` are x's, w's, the convolution's and y's.
    fn choose(
        &self,
        handle: &Handle,
        number_type: Type,
        s: Sizes,
        [x, w, convolution, y]: [Object; 4],
    ) -> Result<Algorithm> {
        let mut found = [Performance::default(); ALGORITHMS];
        let mut count = 0;
        // SAFETY: descriptors of the kinds that the function takes, and room for as many answers as are asked for.
        let status = unsafe {
            let most = ALGORITHMS as c_int;
            let found = found.as_mut_ptr();
            (self.algorithms)(handle.owned.object, x, w, convolution, y, most, &mut count, found)
        };
        self.checked("cudnnGetConvolutionForwardAlgorithm_v7", status)?;
        // The likely fastest first; for f32 none that would multiply in another type (the descriptor forbids it too).
        let fits = |p: &&Performance| {
            let exact = number_type != Type::F32 || p.math_type == math_type(Type::F32);
            p.status == 0 && p.memory <= MOST_WORKSPACE && (exact || p.math_type == 0)
        };
        match found[..ALGORITHMS.min(count as usize)].iter().find(fits) {
            Some(best) => Ok(Algorithm { number: best.algorithm, memory: best.memory }),
            None => bail!(
                "conv2d: cuDNN has no algorithm for {s:?}. KOSMOGRAPH_CUDNN=off runs without it"
            ),
        }
    }
}

/// Where the tensors begin, in the device's memory.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) bias: Option<u64>,
    pub(super) y: u64,
}

/// cuDNN on one stream, with what it has chosen there.
pub(super) struct Handle {
    owned: Owned,
    chosen: RefCell<HashMap<(Type, Sizes), Algorithm>>,
}

/// A handle or a descriptor, destroyed when it is dropped.
pub(super) struct Owned {
    object: Object,
    destroy: unsafe extern "C" fn(Object) -> Status,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: what was made with its counterpart, once. What it answers would help nobody here.
        unsafe { (self.destroy)(self.object) };
    }
}

fn ints(sizes: [usize; 4]) -> Result<[c_int; 4]> {
    let mut ints = [0; 4];
    for (int, size) in ints.iter_mut().zip(sizes) {
        match c_int::try_from(size) {
            Ok(size) => *int = size,
            Err(_) => bail!("conv2d: a size of {size} is more than cuDNN counts to"),
        }
    }
    Ok(ints)
}

/// The convolution on candle's device and stream.
///
/// # Errors
/// CUDA's and cuDNN's.
#[cfg(feature = "cuda")]
pub(super) fn on_gpu(
    cudnn: &Cudnn,
    number_type: Type,
    s: Sizes,
    inputs: &[crate::cuda::device::Input],
) -> Result<candle_core::CudaStorage> {
    use crate::cuda::device::with_addresses;
    let values = s.batch * s.out_channels * s.out_height * s.out_width;
    with_addresses(number_type, inputs, values, |stream, addresses, y, workspace| {
        let addresses =
            Addresses { x: addresses[0], w: addresses[1], bias: addresses.get(2).copied(), y };
        // A handle costs milliseconds; one for each thread and stream is kept.
        HANDLES.with_borrow_mut(|handles| {
            let handle = match handles.entry(stream as usize) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(cudnn.handle(stream)?)
                }
            };
            // SAFETY: the addresses are of the inputs and of an output of `values`, which live until the stream has
            // used them, as the workspace does.
            unsafe { cudnn.conv2d(handle, number_type, s, addresses, workspace) }
        })
    })
}

#[cfg(feature = "cuda")]
thread_local! {
    static HANDLES: std::cell::RefCell<HashMap<usize, Handle>> = Default::default();
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::conv2d::cuda::tests::sizes;
    use crate::cuda::on_cpu::{assert_close, random};

    /// A library with cuDNN's names that checks what it is told and computes in the CPU's memory.
    fn stand_in() -> Cudnn {
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("cudnn_stand_in.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conv2d/cudnn_stand_in.c");
        let mut compiler = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
        let made = compiler.args(["-std=c11", "-O1", "-Wall", "-Werror", "-fPIC", "-shared", "-o"]);
        let status = made.arg(&library).arg(source).status().expect("a C compiler");
        assert!(status.success());
        // SAFETY: made of our own source, for these signatures.
        unsafe {
            Cudnn::of(Library::new(&library).expect("it loads")).expect("it has all functions")
        }
    }

    #[test]
    fn tells_cudnn_what_the_cpu_twin_computes() {
        let cudnn = stand_in();
        let mut stream = 7u8;
        let handle = cudnn.handle((&raw mut stream).cast()).expect("a handle");
        for s in [
            sizes(2, (3, 5), (7, 6), (3, 1, 1)),
            sizes(1, (4, 2), (8, 9), (3, 2, 1)),
            sizes(3, (6, 4), (5, 5), (1, 1, 0)),
        ] {
            let x = random(s.batch * s.channels * s.height * s.width, 1);
            let w = random(s.out_channels * s.channels * s.kernel_h * s.kernel_w, 2);
            let bias = random(s.out_channels, 3);
            for bias in [None, Some(&bias[..])] {
                let isa = crate::simd::Isa::get().expect("an instruction set");
                let values = crate::storage::WeightValues::F32(&w);
                let want = super::super::cpu::conv2d(isa, &x, values, bias.into(), s);
                let mut y = vec![f32::NAN; want.len()];
                let mut room = vec![];
                let addresses = Addresses {
                    x: x.as_ptr() as u64,
                    w: w.as_ptr() as u64,
                    bias: bias.map(|bias| bias.as_ptr() as u64),
                    y: y.as_mut_ptr() as u64,
                };
                // SAFETY: vectors of these sizes; the stand-in is done when it returns.
                unsafe {
                    cudnn.conv2d(&handle, Type::F32, s, addresses, |bytes| {
                        room.resize(bytes, 0u8);
                        Ok(room.as_mut_ptr() as u64)
                    })
                }
                .expect("the stand-in computes");
                assert_close(Type::F32, &y, &want, 1e-5, "cudnn");
                assert_eq!(room.len(), 64, "the algorithm's workspace");
            }
        }
        // Two calls of each size.
        assert_eq!(asked(&cudnn), 3, "asked once for each size");
    }

    /// How often the stand-in was asked for algorithms.
    fn asked(cudnn: &Cudnn) -> c_int {
        // SAFETY: the stand-in's own function, without arguments.
        unsafe {
            let asked = cudnn._library.get::<unsafe extern "C" fn() -> c_int>(b"timesAsked\0");
            asked.expect("the stand-in's function")()
        }
    }

    /// The stand-in refuses numbers it does not compute in, after it has checked what it was told of them.
    #[test]
    fn an_error_of_cudnn_names_the_function_and_the_reason() {
        let cudnn = stand_in();
        let mut stream = 7u8;
        let handle = cudnn.handle((&raw mut stream).cast()).expect("a handle");
        let s = sizes(1, (2, 2), (4, 4), (3, 1, 1));
        let addresses = Addresses { x: 0, w: 0, bias: None, y: 0 };
        for number_type in [Type::F16, Type::BF16] {
            // SAFETY: the stand-in reads nothing for these.
            let found = unsafe { cudnn.conv2d(&handle, number_type, s, addresses, |_| Ok(0)) };
            let error = found.expect_err("no such type").to_string();
            assert!(error.contains("cudnnConvolutionForward answered"), "{error}");
            assert!(error.contains("halves are for a GPU"), "{error}");
        }
        assert!(cudnn.handle(null_mut()).is_err_and(|error| error.to_string().contains("stream")));
    }
}
