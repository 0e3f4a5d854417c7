//! Runs the CUDA twins on the CPU, for tests: `kernel.cu` is compiled by the C++ compiler against
//! `cuda_on_cpu.hpp` and runs with one fiber for each CUDA thread.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use half::{bf16, f16};
use libloading::Library;

use super::{Arg, Plan, Type};

/// Values, or what the CPU saw wrong.
pub(crate) type Found = Result<Vec<f32>, String>;

type Run = unsafe extern "C" fn(*const u32, *const u32, *mut *mut c_void, u32) -> *const c_char;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The text of a kernel and of what it includes of ours, as one.
pub(crate) fn source(kernel: &str) -> String {
    let read = |path: PathBuf| std::fs::read_to_string(&path).expect("a kernel's source");
    let common = read(sources().join("cuda/device.cuh")).replace("#pragma once", "");
    read(sources().join(kernel).join("kernel.cu"))
        .replace("#include \"../cuda/device.cuh\"", &common)
}

/// The texts of a kernel with one `__syncthreads();` of it left out, each by itself; entries of one type alone.
pub(crate) fn without_a_barrier(kernel: &str, number_type: Type) -> Vec<String> {
    let text = of_type(&source(kernel), number_type);
    text.match_indices("__syncthreads();")
        .map(|(at, barrier)| format!("{};{}", &text[..at], &text[at + barrier.len()..]))
        .collect()
}

/// The text with entry points of one type alone, which are compiled sooner.
pub(crate) fn of_type(text: &str, number_type: Type) -> String {
    const F32: &str = "M(f32, float)";
    const F16: &str = "M(f16, __half)";
    const BF16: &str = "M(bf16, __nv_bfloat16)";
    let (all, halves) = match number_type {
        Type::F32 => (F32, ""),
        Type::F16 => (F16, F16),
        Type::BF16 => (BF16, BF16),
    };
    let text = text.replace(
        &format!("FOR_EACH_TYPE(M) {F32} {F16} {BF16}\n#"),
        &format!("FOR_EACH_TYPE(M) {all}\n#"),
    );
    text.replace(
        &format!("FOR_EACH_HALF_TYPE(M) {F16} {BF16}\n"),
        &format!("FOR_EACH_HALF_TYPE(M) {halves}\n"),
    )
}

fn compiler() -> Command {
    let mut compiler = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".into()));
    compiler.args(["-std=c++17", "-DCUDA_ON_CPU", "-w", "-I"]).arg(sources().join("cuda/on_cpu"));
    compiler
}

fn run_compiler(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `kernel.cu` as a library with an entry for each of its entry points.
fn compile(text: &str) -> Library {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, library) = (folder.path().join("kernel.cpp"), folder.path().join("kernel.so"));
    std::fs::write(&source, text).expect("a source written");
    let expanded = run_compiler(compiler().args(["-E", "-P"]).arg(&source));
    let names =
        expanded.split("extern \"C\" void ").skip(1).filter_map(|rest| rest.split('(').next());
    let entries: String = names.map(|name| format!("CUDA_ON_CPU_ENTRY({name})\n")).collect();
    std::fs::write(&source, format!("{text}\n{entries}")).expect("a source written");
    run_compiler(
        compiler()
            // Nothing of one library may be taken for the same name of another: tests run side by side.
            .args(["-fvisibility=hidden", "-fno-gnu-unique"])
            .args(["-O1", "-march=native", "-fPIC", "-shared"])
            .arg(&source)
            .arg("-o")
            .arg(&library),
    );
    // SAFETY: the library was just made of our own source, and loading it runs nothing.
    unsafe { Library::new(&library) }.expect("the library loads")
}

/// A kernel compiled, once and kept. One test at a time is in a library: what a block shares is static there.
fn library(text: &str) -> &'static Mutex<Library> {
    type Slot = OnceLock<Mutex<Library>>;
    static LIBRARIES: OnceLock<Mutex<HashMap<String, &'static Slot>>> = OnceLock::new();
    let slot = {
        let mut libraries =
            LIBRARIES.get_or_init(Default::default).lock().unwrap_or_else(PoisonError::into_inner);
        *libraries.entry(text.to_owned()).or_insert_with(|| Box::leak(Box::new(Slot::new())))
    };
    slot.get_or_init(|| Mutex::new(compile(text)))
}

/// An input: values of a number type, or f32 whatever the activations are.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Rounded to the type.
    Of(Type, &'a [f32]),
    F32(&'a [f32]),
}

/// Values with some around them that no kernel may read or write: NaN, as the number type has it.
struct Guarded {
    bytes: Vec<u128>,
    size: usize,
    values: usize,
}

/// Around the values on either side; a multiple of 16, so that the first value is aligned as on a GPU.
const GUARD: usize = 256;

impl Guarded {
    fn new(size: usize, values: usize) -> Guarded {
        let bytes = (values * size).div_ceil(16) * 16 + 2 * GUARD;
        Guarded { bytes: vec![u128::MAX; bytes / 16], size, values }
    }

    fn of(number_type: Type, values: &[f32]) -> Guarded {
        let size = if number_type == Type::F32 { 4 } else { 2 };
        let mut guarded = Guarded::new(size, values.len());
        for (to, &value) in guarded.inner_mut().chunks_exact_mut(size).zip(values) {
            match number_type {
                Type::F32 => to.copy_from_slice(&value.to_le_bytes()),
                Type::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                Type::BF16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            }
        }
        guarded
    }

    fn all(&self) -> &[u8] {
        // SAFETY: a u128 is sixteen bytes without padding, and any bytes are u8s.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() * 16) }
    }

    fn inner_mut(&mut self) -> &mut [u8] {
        let (length, values) = (self.bytes.len() * 16, self.values * self.size);
        // SAFETY: as in `all`, and borrowed for writing here alone.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast::<u8>(), length) };
        &mut all[GUARD..GUARD + values]
    }

    fn pointer(&mut self) -> *mut c_void {
        self.inner_mut().as_mut_ptr().cast()
    }

    /// The values, and that nothing was written around them.
    fn values(&self, number_type: Type) -> Found {
        let end = GUARD + self.values * self.size;
        if self.all()[..GUARD].iter().chain(&self.all()[end..]).any(|&byte| byte != 0xff) {
            return Err("a kernel wrote outside of its output".into());
        }
        let values = self.all()[GUARD..end].chunks_exact(self.size);
        Ok(values
            .map(|bytes| match number_type {
                Type::F32 => f32::from_le_bytes(bytes.try_into().expect("four bytes")),
                Type::F16 => f16::from_le_bytes(bytes.try_into().expect("two bytes")).to_f32(),
                Type::BF16 => bf16::from_le_bytes(bytes.try_into().expect("two bytes")).to_f32(),
            })
            .collect())
    }
}

/// Runs `plan` and returns the output's values. `seed` decides the order of blocks and of threads. Each launch
/// may have another number of threads than the plan says, where `threads` gives one.
///
/// # Errors
/// What the CPU saw wrong: threads that wait at different places, addresses that are not aligned, a write
/// outside of the output.
pub(crate) fn run(
    plan: &Plan,
    inputs: &[Input],
    output: (Type, usize),
    seed: u32,
    threads: Option<usize>,
) -> Found {
    run_source(&source(plan.kernel), plan, inputs, output, seed, threads)
}

/// The same with another text of the kernel.
pub(crate) fn run_source(
    text: &str,
    plan: &Plan,
    inputs: &[Input],
    (number_type, values): (Type, usize),
    seed: u32,
    threads: Option<usize>,
) -> Found {
    let mut inputs: Vec<Guarded> = inputs
        .iter()
        .map(|input| match *input {
            Input::Of(number_type, values) => Guarded::of(number_type, values),
            Input::F32(values) => Guarded::of(Type::F32, values),
        })
        .collect();
    let mut output = Guarded::new(if number_type == Type::F32 { 4 } else { 2 }, values);
    let mut scratch = Guarded::new(4, plan.scratch);
    let library = library(text).lock().unwrap_or_else(PoisonError::into_inner);
    for launch in &plan.launches {
        let bytes: Vec<[u8; 8]> = launch
            .arguments
            .iter()
            .map(|argument| match *argument {
                Arg::Input(number) => (inputs[number].pointer() as usize).to_le_bytes(),
                Arg::Output => (output.pointer() as usize).to_le_bytes(),
                Arg::Scratch => (scratch.pointer() as usize).to_le_bytes(),
                Arg::Null => [0; 8],
                Arg::Int(value) => i64::from(value).to_le_bytes(),
                Arg::Long(value) => value.to_le_bytes(),
                Arg::Float(value) => u64::from(value.to_bits()).to_le_bytes(),
            })
            .collect();
        let mut bytes: Vec<u64> = bytes.into_iter().map(u64::from_le_bytes).collect();
        let mut pointers: Vec<*mut c_void> =
            bytes.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let grid = launch.grid.map(|blocks| blocks as u32);
        let size = [threads.unwrap_or(launch.threads) as u32, 1, 1];
        // SAFETY: the name and the type are those of CUDA_ON_CPU_ENTRY; the pointers are to values that
        // live until the call is over, of the kernel's own types if the plan is right, which is what is tested.
        let error = unsafe {
            let name = format!("run_{}", launch.function);
            let run = library.get::<Run>(name.as_bytes()).expect("an entry");
            run(grid.as_ptr(), size.as_ptr(), pointers.as_mut_ptr(), seed)
        };
        if !error.is_null() {
            // SAFETY: an error is a literal of the library, which stays loaded.
            return Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned());
        }
    }
    scratch.values(Type::F32)?;
    output.values(number_type)
}

/// `values` as the type holds them.
pub(crate) fn rounded(number_type: Type, values: &[f32]) -> Vec<f32> {
    let round = |value: f32| match number_type {
        Type::F32 => value,
        Type::F16 => f16::from_f32(value).to_f32(),
        Type::BF16 => bf16::from_f32(value).to_f32(),
    };
    values.iter().map(|&value| round(value)).collect()
}

/// Half of the last place of the type at 1.
pub(crate) fn precision(number_type: Type) -> f32 {
    match number_type {
        Type::F32 => f32::EPSILON / 2.0,
        Type::F16 => f16::EPSILON.to_f32() / 2.0,
        Type::BF16 => bf16::EPSILON.to_f32() / 2.0,
    }
}

/// Asserts that `found` is `want`, but for the rounding of the result to its type and `sums` relative to the
/// largest value.
pub(crate) fn assert_close(number_type: Type, found: &[f32], want: &[f32], sums: f32, what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (i, (found, want)) in found.iter().zip(want).enumerate() {
        let bound = want.abs() * precision(number_type) * 1.01 + largest * sums;
        assert!(
            (found - want).abs() <= bound || (found.is_nan() && want.is_nan()),
            "{what} {number_type:?}, value {i}: {found} is not {want} within {bound}"
        );
    }
}

/// Values of a normal distribution, the same for a seed.
pub(crate) fn random(count: usize, seed: u64) -> Vec<f32> {
    // Sums of uniform numbers of a linear congruential generator: tests need no better.
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(88_172_645_463_325_252);
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

/// Whether a run of a kernel that was made wrong shows it.
pub(crate) fn is_wrong(found: &Found, want: &[f32], bound: f32) -> bool {
    let right = |(found, want): (&f32, &f32)| (found - want).abs() <= bound;
    !found.as_ref().is_ok_and(|found| found.iter().zip(want).all(right))
}

pub(crate) const TYPES: [Type; 3] = [Type::F32, Type::F16, Type::BF16];
