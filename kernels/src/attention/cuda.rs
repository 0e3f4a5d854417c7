use candle_core::{Result, bail};

use crate::cuda::{Arg, Launch, Plan, Type, int, long};

use super::cpu::Sizes;

/// Widths that the tensor cores' kernel is made for; a head is made up to the next with zeros.
const TENSOR_CORE_WIDTHS: [usize; 5] = [48, 64, 80, 128, 160];
/// Widths of the kernel in f32, and the threads of a block of each.
const F32_WIDTHS: [(usize, usize); 2] = [(160, 128), (512, 256)];

/// How far heads, rows and so on are apart, in values.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    /// Of q, k and v: of B, H and L.
    pub(super) heads: [[usize; 3]; 3],
    /// Of the mask, if there is one: of B, H, Lq and Lk.
    pub(super) mask: Option<[usize; 4]>,
    /// k and v begin at multiples of 16 bytes.
    pub(super) aligned: bool,
}

/// q, k and v of a type, mask f32 → [B, Lq, H, Dv].
///
/// # Errors
/// A head is wider than 512, or a size is larger than CUDA counts to.
pub(super) fn plan(number_type: Type, s: Sizes, strides: Strides, scale: f32) -> Result<Plan> {
    let width = s.head_dim.max(s.value_dim);
    let for_tensor_cores = match number_type {
        Type::F32 => None,
        Type::F16 | Type::BF16 => {
            TENSOR_CORE_WIDTHS.into_iter().find(|&made_for| width <= made_for)
        }
    };
    let in_f32 = F32_WIDTHS.into_iter().find(|&(made_for, _)| width <= made_for);
    let (function, queries, threads) = match (for_tensor_cores, in_f32) {
        (Some(width), _) => (format!("attention_width{width}"), 64, 128),
        (None, Some((width, threads))) => (format!("attention_f32_width{width}"), 32, threads),
        (None, None) => {
            bail!("attention: a head of {width} is wider than the 512 of the CUDA kernels")
        }
    };
    let Strides { heads: [q, k, v], mask, aligned } = strides;
    let whole = |size: usize| size.is_multiple_of(8);
    let aligned =
        aligned && whole(s.head_dim) && whole(s.value_dim) && k.into_iter().chain(v).all(whole);
    let mut arguments = vec![
        Arg::Input(0),
        Arg::Input(1),
        Arg::Input(2),
        if mask.is_some() { Arg::Input(3) } else { Arg::Null },
        Arg::Output,
    ];
    arguments.extend([q, k, v].concat().into_iter().map(long));
    arguments.extend(mask.unwrap_or_default().map(long));
    for size in [s.queries, s.keys, s.head_dim, s.value_dim] {
        arguments.push(int(size)?);
    }
    arguments.extend([Arg::Float(scale), Arg::Int(i32::from(aligned))]);
    let launch = Launch {
        function: format!("{function}_{}", number_type.name()),
        grid: [s.queries.div_ceil(queries), s.heads, s.batch],
        threads,
        arguments,
    };
    Plan::new("attention", 0, vec![launch])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::cpu;
    use crate::cuda::on_cpu::{self, Found, Input, TYPES};
    use crate::simd::Isa;

    struct Case {
        s: Sizes,
        /// Heads split off a projection: [B, L, H, D] seen as [B, H, L, D].
        qkv: [Vec<f32>; 3],
        strides: Strides,
        mask: Vec<f32>,
    }

    impl Case {
        fn new(
            number_type: Type,
            (batch, heads): (usize, usize),
            (queries, keys): (usize, usize),
            (head_dim, value_dim): (usize, usize),
        ) -> Case {
            let s = Sizes { batch, heads, queries, keys, head_dim, value_dim };
            let values = |length: usize, width: usize, seed| {
                on_cpu::rounded(number_type, &on_cpu::random(batch * length * heads * width, seed))
            };
            let strides = |length: usize, width| [length * heads * width, width, heads * width];
            Case {
                s,
                qkv: [
                    values(queries, head_dim, 1),
                    values(keys, head_dim, 2),
                    values(keys, value_dim, 3),
                ],
                strides: Strides {
                    heads: [
                        strides(queries, head_dim),
                        strides(keys, head_dim),
                        strides(keys, value_dim),
                    ],
                    mask: None,
                    aligned: true,
                },
                mask: vec![],
            }
        }

        /// Query i sees the keys up to i + `ahead`; of every sample but the first, the first `hidden` keys are away.
        fn masked(mut self, ahead: isize, hidden: usize) -> Case {
            let Sizes { batch, queries, keys, .. } = self.s;
            let shown = |b: usize, q: usize, k: usize| {
                k as isize <= q as isize + ahead && (b == 0 || k >= hidden)
            };
            for b in 0..batch {
                for q in 0..queries {
                    self.mask.extend((0..keys).map(|k| {
                        if shown(b, q, k) { (k % 3) as f32 * 0.5 } else { f32::NEG_INFINITY }
                    }));
                }
            }
            self.strides.mask = Some([queries * keys, 0, keys, 1]);
            self
        }

        fn want(&self, scale: f32) -> Vec<f32> {
            let [q, k, v] = [0, 1, 2].map(|i| cpu::Heads {
                values: &self.qkv[i],
                start: 0,
                strides: self.strides.heads[i],
            });
            let mask = self.strides.mask.map(|strides| cpu::Mask {
                values: &self.mask,
                start: 0,
                strides,
            });
            cpu::attention(Isa::Portable, [q, k, v], mask, scale, self.s, false).0
        }

        fn run(&self, text: &str, number_type: Type, plan: &Plan, seed: u32) -> Found {
            let [q, k, v] = [0, 1, 2].map(|i| Input::Of(number_type, &self.qkv[i]));
            let Sizes { batch, heads, queries, value_dim, .. } = self.s;
            let output = (number_type, batch * heads * queries * value_dim);
            let inputs = [q, k, v, Input::F32(&self.mask)];
            on_cpu::run_source(text, plan, &inputs, output, seed, None)
        }
    }

    #[test]
    fn agrees_with_the_cpu_s() {
        let text = on_cpu::source("attention");
        for number_type in TYPES {
            let case = |heads, lengths, widths| Case::new(number_type, heads, lengths, widths);
            for (seed, case) in [
                case((2, 2), (70, 150), (40, 40)),
                case((1, 1), (1, 1), (64, 64)),
                case((1, 2), (65, 77), (80, 80)).masked(0, 0),
                case((2, 1), (33, 65), (64, 64)).masked(-1, 40),
                case((1, 1), (30, 40), (160, 160)),
                case((1, 1), (20, 70), (128, 96)),
                case((1, 1), (40, 33), (7, 5)).masked(3, 0),
                case((1, 1), (33, 35), (512, 512)),
            ]
            .into_iter()
            .enumerate()
            {
                let scale = (case.s.head_dim as f32).powf(-0.5);
                let plan = plan(number_type, case.s, case.strides, scale).expect("small");
                let found = case.run(&text, number_type, &plan, seed as u32).expect("runs");
                // The tensor cores' kernel rounds the weights of the sum to the type.
                let sums = 2.0 * on_cpu::precision(number_type) + 4e-6;
                let what = format!("attention {:?}", case.s);
                on_cpu::assert_close(number_type, &found, &case.want(scale), sums, &what);
            }
        }
    }

    #[test]
    fn rows_that_cannot_be_copied_whole_are_read_one_by_one() {
        let mut case = Case::new(Type::F16, (1, 1), (20, 70), (40, 40));
        case.strides.aligned = false;
        let plan = plan(Type::F16, case.s, case.strides, 0.2).expect("small");
        assert_eq!(plan.launches[0].arguments.last(), Some(&Arg::Int(0)));
        let found = case.run(&on_cpu::source("attention"), Type::F16, &plan, 1).expect("runs");
        on_cpu::assert_close(Type::F16, &found, &case.want(0.2), 1e-3, "attention");
    }

    #[test]
    fn a_nan_is_not_hidden() {
        for number_type in TYPES {
            let mut case = Case::new(number_type, (1, 1), (3, 5), (8, 8));
            case.qkv[0].fill(f32::NAN);
            let plan = plan(number_type, case.s, case.strides, 0.2).expect("small");
            let found = case.run(&on_cpu::source("attention"), number_type, &plan, 1);
            assert!(found.expect("runs").iter().all(|value| value.is_nan()));
        }
    }

    /// A test of the test: without one of the barriers, or without waiting for the copies, the result is wrong.
    #[test]
    fn a_missing_barrier_is_seen() {
        let wait = "device::wait_for_copies<1>();";
        for number_type in [Type::F16, Type::F32] {
            let mut texts = on_cpu::without_a_barrier("attention", number_type);
            // Two of block_sum, two of the tensor cores' path, four of the other.
            assert_eq!(texts.len(), 8);
            if number_type == Type::F16 {
                let source = on_cpu::of_type(&on_cpu::source("attention"), number_type);
                assert!(source.contains(wait));
                texts = texts[2..4].to_vec();
                texts.push(source.replace(wait, ""));
            } else {
                texts.drain(..4);
            }
            let case = Case::new(number_type, (1, 1), (64, 200), (40, 40));
            let plan = plan(number_type, case.s, case.strides, 1.0).expect("small");
            let want = case.want(1.0);
            for text in &texts {
                let wrong = (0..8).any(|seed| {
                    on_cpu::is_wrong(&case.run(text, number_type, &plan, seed), &want, 0.05)
                });
                assert!(wrong, "a kernel without one of its barriers passed");
            }
        }
    }
}
