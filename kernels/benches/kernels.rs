//! Every kernel beside what candle itself has for it, on the CPU: `cargo bench -p kosmograph-kernels --bench kernels`.

use std::time::Duration;

use candle_core::{D, Device, Module, Result, Tensor};
use candle_nn::ops;
use criterion::{Criterion, criterion_group, criterion_main};
use kosmograph_kernels as kernels;

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).expect("random values")
}

fn pair(
    criterion: &mut Criterion,
    name: &str,
    ours: impl Fn() -> Result<Tensor>,
    candle: impl Fn() -> Result<Tensor>,
) {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group.bench_function("ours", |bencher| bencher.iter(|| ours().expect("runs")));
    group.bench_function("candle", |bencher| bencher.iter(|| candle().expect("runs")));
    group.finish();
}

fn convolution(criterion: &mut Criterion) {
    for (channels, size, kernel, stride) in
        [(320, 64, 3, 1), (1280, 16, 3, 1), (1280, 8, 3, 1), (320, 64, 3, 2), (320, 64, 1, 1)]
    {
        let x = random(&[2, channels, size, size]);
        let (w, b) = (random(&[channels, channels, kernel, kernel]), random(&[channels]));
        let bias = b.reshape((1, channels, 1, 1)).expect("a shape");
        pair(
            criterion,
            &format!("conv2d {kernel}x{kernel} stride {stride}, {channels} channels at {size}"),
            || kernels::conv2d(&x, &w, Some(&b), stride, kernel / 2),
            || x.conv2d(&w, kernel / 2, stride, 1, 1)?.broadcast_add(&bias),
        );
    }
}

fn linear(criterion: &mut Criterion) {
    for (rows, input, output) in
        [(8192, 320, 320), (8192, 320, 2560), (512, 1280, 10240), (154, 768, 320)]
    {
        let (x, w, b) = (random(&[rows, input]), random(&[output, input]), random(&[output]));
        let layer = candle_nn::Linear::new(w.clone(), Some(b.clone()));
        pair(
            criterion,
            &format!("linear {rows} x {input} to {output}"),
            || kernels::linear(&x, &w, Some(&b)),
            || layer.forward(&x),
        );
    }
}

fn attention(criterion: &mut Criterion) {
    for (queries, keys, width) in
        [(4096, 4096, 40), (4096, 77, 40), (1024, 1024, 80), (256, 256, 160)]
    {
        let [q, k, v] = [queries, keys, keys].map(|length| random(&[2, 8, length, width]));
        pair(
            criterion,
            &format!("attention {queries} x {keys}, width {width}"),
            || kernels::attention(&q, &k, &v, None, 0.1),
            || ops::softmax_last_dim(&(q.matmul(&k.t()?)? * 0.1)?)?.matmul(&v),
        );
    }
}

fn the_rest(criterion: &mut Criterion) {
    let x = random(&[2, 320, 64, 64]);
    let (w, b) = (random(&[320]), random(&[320]));
    let norm = candle_nn::GroupNorm::new(w.clone(), b.clone(), 320, 32, 1e-5).expect("a norm");
    pair(
        criterion,
        "group_norm_silu 2 x 320 x 64 x 64",
        || kernels::group_norm_silu(&x, &w, &b, 32, 1e-5),
        || norm.forward(&x)?.silu(),
    );
    let rows = random(&[8192, 320]);
    pair(
        criterion,
        "layer_norm 8192 x 320",
        || kernels::layer_norm(&rows, &w, &b, 1e-5),
        || ops::layer_norm(&rows, &w, &b, 1e-5),
    );
    let hidden = random(&[8192, 2560]);
    pair(
        criterion,
        "geglu 8192 x 2560",
        || kernels::geglu(&hidden),
        || {
            let halves = hidden.chunk(2, D::Minus1)?;
            &halves[0] * halves[1].gelu_erf()?
        },
    );
    pair(criterion, "silu 2 x 320 x 64 x 64", || kernels::silu(&x), || x.silu());
    pair(criterion, "gelu_erf 2 x 320 x 64 x 64", || kernels::gelu_erf(&x), || x.gelu_erf());
    pair(
        criterion,
        "quick_gelu 2 x 320 x 64 x 64",
        || kernels::quick_gelu(&x),
        || &x * ops::sigmoid(&(&x * 1.702)?)?,
    );
    pair(
        criterion,
        "upsample_nearest2d 2 x 320 x 64 x 64",
        || kernels::upsample_nearest2d(&x, 128, 128),
        || x.upsample_nearest2d(128, 128),
    );
    let (weight, up, down) = (random(&[1280, 1280]), random(&[1280, 16]), random(&[16, 1280]));
    pair(
        criterion,
        "low_rank_update 1280 x 1280, rank 16",
        || kernels::low_rank_update(&weight, &up, &down),
        || &weight + up.matmul(&down)?,
    );
}

criterion_group!(benches, convolution, linear, attention, the_rest);
criterion_main!(benches);
