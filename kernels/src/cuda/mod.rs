//! The CUDA twins' common part.
//!
//! A twin says what to launch as data, a [`Plan`]: which entry point of its `kernel.cu`, on what grid, with which
//! arguments. The plan is the same whether it runs on a GPU, in candle's context and stream ([`device`], with the
//! feature `cuda`), or on the CPU in a test ([`on_cpu`]), so the tests cover the arithmetic of grids and the order of
//! arguments too.

#[cfg(feature = "cuda")]
pub(crate) mod device;
#[cfg(test)]
pub(crate) mod on_cpu;

/// The number types of activations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Type {
    F32,
    F16,
    BF16,
}

impl Type {
    /// The end of an entry point's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Type::F32 => "f32",
            Type::F16 => "f16",
            Type::BF16 => "bf16",
        }
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Arg {
    /// The first value of input number i.
    Input(usize),
    Output,
    /// f32 values that the launches of a plan share.
    Scratch,
    Null,
    /// `int`
    Int(i32),
    /// `long long`
    Long(i64),
    /// `float`
    Float(f32),
}

/// A size as an `int` of CUDA.
///
/// # Errors
/// It does not fit: the kernels count within a plane, a row or a channel in 32 bits.
pub(crate) fn int(size: usize) -> candle_core::Result<Arg> {
    match i32::try_from(size) {
        Ok(size) => Ok(Arg::Int(size)),
        Err(_) => candle_core::bail!("a size of {size} is more than a CUDA kernel counts to"),
    }
}

/// A size as a `long long`. No tensor has more values than that.
pub(crate) fn long(size: usize) -> Arg {
    Arg::Long(size as i64)
}

/// One launch.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Launch {
    pub(crate) function: String,
    /// Blocks in x, y and z.
    pub(crate) grid: [usize; 3],
    /// Threads of a block.
    pub(crate) threads: usize,
    pub(crate) arguments: Vec<Arg>,
}

impl Launch {
    /// One thread for each of `values` values, or several values a thread where there are very many.
    pub(crate) fn element_wise(function: String, values: usize, arguments: Vec<Arg>) -> Launch {
        const THREADS: usize = 256;
        // Enough to fill any GPU; more would only be more to start.
        const BLOCKS: usize = 1 << 16;
        let grid = [values.div_ceil(THREADS).min(BLOCKS), 1, 1];
        Launch { function, grid, threads: THREADS, arguments }
    }
}

/// What a twin launches, in order.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    /// The folder whose `kernel.cu` has the functions.
    pub(crate) kernel: &'static str,
    /// f32 values of scratch memory.
    pub(crate) scratch: usize,
    pub(crate) launches: Vec<Launch>,
}

/// The most blocks that CUDA takes in y and z.
const BLOCKS_YZ: usize = 65_535;

impl Plan {
    /// # Errors
    /// A grid is larger than CUDA takes.
    pub(crate) fn new(
        kernel: &'static str,
        scratch: usize,
        launches: Vec<Launch>,
    ) -> candle_core::Result<Plan> {
        for Launch { function, grid, .. } in &launches {
            let [x, y, z] = *grid;
            if x > i32::MAX as usize || y > BLOCKS_YZ || z > BLOCKS_YZ {
                candle_core::bail!("{function}: a grid of {x} × {y} × {z} blocks is too large")
            }
        }
        Ok(Plan { kernel, scratch, launches })
    }

    /// [`Launch::element_wise`] alone.
    pub(crate) fn element_wise(
        kernel: &'static str,
        function: String,
        values: usize,
        arguments: Vec<Arg>,
    ) -> Plan {
        let launches = vec![Launch::element_wise(function, values, arguments)];
        Plan { kernel, scratch: 0, launches }
    }
}
