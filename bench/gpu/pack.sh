#!/usr/bin/env bash
# Builds, without a GPU, what is tested and timed on one, and packs it: target/cuda/kosmograph-gpu.tar.xz. Unpack that on the
# GPU's machine, which needs the driver, CUDA 13's cuBLAS, cuRAND and cudart, and Python with torch and diffusers; no Rust:
#
#   tar xf kosmograph-gpu.tar.xz && kosmograph-gpu/run.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

scripts/build-cuda
if [ -z "${CUDA_HOME:-}" ]; then
  if nvcc=$(command -v nvcc); then CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$nvcc")")"); else CUDA_HOME=$(scripts/cuda-toolkit target/cuda-toolkit-link --link); fi
fi
export CUDA_HOME CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} PATH=$CUDA_HOME/bin:$PATH
export LIBRARY_PATH=$CUDA_HOME/lib64:$CUDA_HOME/lib64/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}
build=(cargo build --release --target-dir target/cuda --message-format json-render-diagnostics)
"${build[@]}" -p kosmograph-models --features cuda --example bench > /dev/null
test_binary=$("${build[@]}" -p kosmograph-kernels --features cuda --test gpu \
  | python3 -c 'import json, sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])')

out=target/cuda/kosmograph-gpu
rm -rf "$out"
mkdir -p "$out/bin"
cp "$test_binary" "$out/bin/gpu-test"
cp target/cuda/release/examples/bench target/cuda/release/kosmograph target/cuda/release/libkosmograph_*.so "$out/bin/"
strip "$out"/bin/*
cp bench/gpu/run.py bench/gpu/torch_f64.py bench/peers/torch_part.py bench/peers/networks.py "$out/"
cp -r workflows models "$out/"
rm -rf "$out/models/tiny/train" "$out/models/tiny/evaluate"
tar cJf "$out.tar.xz" -C target/cuda kosmograph-gpu
ls -l "$out.tar.xz"
