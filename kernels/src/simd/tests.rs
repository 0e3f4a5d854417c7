use super::*;

#[test]
fn names_of_instruction_sets() {
    assert_eq!(Isa::named("portable"), Ok(Isa::Portable));
    let error = Isa::named("sse9").expect_err("there is none");
    assert!(error.contains("sse9") && error.contains("avx2"), "{error}");
    for (name, isa) in [("avx512", Isa::Avx512), ("neon", Isa::Neon)] {
        if !Isa::available().contains(&isa) {
            assert!(Isa::named(name).is_err_and(|error| error.contains("does not have")));
        }
    }
}

#[test]
fn a_precision_is_had_or_refused() {
    let widest = Isa::available()[0];
    assert_eq!(Isa::chosen("", "f32"), Ok(widest));
    assert_eq!(Isa::chosen("portable", ""), Ok(Isa::Portable));
    match Isa::with_bf16().first() {
        Some(fastest) => assert_eq!(Isa::chosen("", "bf16"), Ok(*fastest)),
        None => assert!(Isa::chosen("", "bf16").is_err_and(|error| error.contains("AMX"))),
    }
    match Isa::with_int8().first() {
        Some(fastest) => assert_eq!(Isa::chosen("", "int8"), Ok(*fastest)),
        None => assert!(Isa::chosen("", "int8").is_err_and(|error| error.contains("dot product"))),
    }
    for precision in ["bf16", "int8"] {
        let error = Isa::chosen("portable", precision).expect_err("it has none");
        assert!(error.contains("portable, whose products are of f32"), "{error}");
    }
    assert!(Isa::chosen("", "int4").is_err_and(|error| error.contains("f32, bf16 or int8")));
    for isa in [Isa::with_bf16(), Isa::with_int8()].concat() {
        let name = match isa {
            Isa::Amx => "amx",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::NeonBf16 => "neonbf16",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx2Int8 => "avx2int8",
            Isa::NeonDotProd => "neondotprod",
            _ => "avx512vnni",
        };
        assert!(Isa::chosen(name, "").is_err());
        assert_eq!(Isa::chosen(name, isa.precision()), Ok(isa));
        assert!(Isa::chosen(name, "f32").is_err());
    }
}

#[test]
fn fours_parts_and_transposes() {
    struct Check;
    impl Kernel for Check {
        type Output = ();

        #[inline(always)]
        fn run<V: Vector>(self) {
            let values: Vec<f32> = (0..700).map(|i| i as f32).collect();
            let mut to = vec![-1f32; 700];
            // SAFETY: all within the two; the processor has V, or this would not run.
            unsafe {
                for (i, part) in V::by_fours(values.as_ptr().add(3)).into_iter().enumerate() {
                    part.store(to.as_mut_ptr());
                    let want = (0..V::LANES).map(|lane| (3 + 4 * lane + i) as f32);
                    assert!(to[..V::LANES].iter().copied().eq(want));
                }
                for count in 0..=V::LANES {
                    to.fill(-1.0);
                    let part = V::load_part(values.as_ptr().add(1), count);
                    part.add(V::splat(1.0)).store_part(to.as_mut_ptr(), count);
                    let want = |i| if i < count { 2.0 + i as f32 } else { -1.0 };
                    assert!((0..V::LANES + 1).all(|i| to[i] == want(i)), "{count}: {to:?}");
                    part.store(to.as_mut_ptr());
                    assert!(to[count..V::LANES].iter().all(|value| *value == 0.0));
                }
                V::transpose(values.as_ptr(), 19, to.as_mut_ptr(), 23);
            }
            for (i, j) in (0..V::LANES).flat_map(|i| (0..V::LANES).map(move |j| (i, j))) {
                assert_eq!(to[23 * j + i], (19 * i + j) as f32);
            }
        }
    }
    for isa in Isa::available() {
        isa.run(Check);
    }
}

/// Every half there is, but for those that are no numbers, whose bits may differ.
#[test]
fn halves_are_the_numbers_that_they_are() {
    struct Widen;
    impl Kernel for Widen {
        type Output = ();

        #[inline(always)]
        fn run<V: Vector>(self) {
            let all: Vec<u16> = (0..=u16::MAX).collect();
            let (mut of_f16, mut of_bf16) = (vec![0f32; all.len()], vec![0f32; all.len()]);
            for start in (0..all.len()).step_by(V::LANES) {
                let from = all[start..][..V::LANES].as_ptr();
                // SAFETY: LANES values at each place, since LANES divides their number.
                unsafe {
                    V::load_f16(from.cast()).store(of_f16[start..].as_mut_ptr());
                    V::load_bf16(from.cast()).store(of_bf16[start..].as_mut_ptr());
                }
            }
            for (bits, (a, b)) in all.iter().zip(of_f16.iter().zip(&of_bf16)) {
                for (is, want) in
                    [(a, f16::from_bits(*bits).to_f32()), (b, bf16::from_bits(*bits).to_f32())]
                {
                    let same = is.to_bits() == want.to_bits() || is.is_nan() && want.is_nan();
                    assert!(same, "{bits:#x} is {want} and not {is}");
                }
            }
        }
    }
    Isa::available().into_iter().for_each(|isa| isa.run(Widen));
}

/// Transposes of a matrix that is larger than the block, at every instruction set's width.
#[test]
fn a_transpose_turns_rows_to_columns() {
    struct Turn;
    impl Kernel for Turn {
        type Output = ();

        #[inline(always)]
        fn run<V: Vector>(self) {
            let from: Vec<f32> = (0..V::LANES * 40).map(|i| i as f32).collect();
            let mut to = vec![-1f32; V::LANES * 37];
            // SAFETY: LANES rows of 40 values, and LANES rows of 37 to write to.
            unsafe { V::transpose(from.as_ptr(), 40, to.as_mut_ptr(), 37) };
            for (at, value) in to.iter().enumerate() {
                let (j, i) = (at / 37, at % 37);
                let want = if i < V::LANES { (i * 40 + j) as f32 } else { -1.0 };
                assert_eq!(*value, want);
            }
        }
    }
    Isa::available().into_iter().for_each(|isa| isa.run(Turn));
}

/// One value of a vector against another vector, at every place of it.
#[test]
fn a_product_by_lane_takes_that_value() {
    struct ByLane;
    impl Kernel for ByLane {
        type Output = ();

        #[inline(always)]
        fn run<V: Vector>(self) {
            let a: Vec<f32> = (1..=V::LANES).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..V::LANES).map(|i| 10.0 + i as f32).collect();
            for lane in 0..V::LANES {
                let mut found = [0f32; 16];
                // SAFETY: vectors of values, and room for one.
                unsafe {
                    let c = V::splat(0.5);
                    V::load(a.as_ptr())
                        .mul_add_lane(lane, V::load(b.as_ptr()), c)
                        .store(found.as_mut_ptr());
                }
                for (found, b) in found.iter().zip(&b) {
                    assert_eq!(*found, (lane + 1) as f32 * b + 0.5);
                }
            }
        }
    }
    Isa::available().into_iter().for_each(|isa| isa.run(ByLane));
}

/// The larger, and `other` where one is no number: not all instruction sets' own maxima are so.
#[test]
fn a_maximum_with_what_is_no_number_is_the_other() {
    struct Maximum;
    impl Kernel for Maximum {
        type Output = ();

        #[inline(always)]
        fn run<V: Vector>(self) {
            let maximum = |a: f32, b: f32| {
                let mut found = [0f32; 16];
                // SAFETY: room for a vector.
                unsafe { V::splat(a).max(V::splat(b)).store(found.as_mut_ptr()) };
                found[V::LANES - 1]
            };
            assert_eq!((maximum(1.0, 2.0), maximum(2.0, 1.0)), (2.0, 2.0));
            assert_eq!(maximum(f32::NAN, 1.0), 1.0);
            assert!(maximum(1.0, f32::NAN).is_nan());
            assert_eq!(maximum(f32::NEG_INFINITY, -1.0), -1.0);
        }
    }
    Isa::available().into_iter().for_each(|isa| isa.run(Maximum));
}
