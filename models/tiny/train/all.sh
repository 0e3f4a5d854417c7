#!/bin/sh
# Trains everything and writes the folders that the loaders read. A finished stage is skipped and a stopped one goes on.
# usage: all.sh WORK OUT [cpu|gpu|smoke]   smoke: a few steps of each stage, to see that they run
# Stages that do not need each other run at the same time: each of these networks alone is too small for a GPU, or for two cores.
set -e
work=$1 out=$2 budget=${3:-cpu}
cd "$(dirname "$0")"
mkdir -p "$work" "$out/train"

# stage THREADS NAME...: one after the other
stage() {
    threads=$1
    shift
    for name in "$@"; do
        echo "== $name"
        python "$name.py" "$work" --budget "$budget" --threads "$threads" || { echo "$name failed or was stopped"; exit 1; }
    done
}

# together GROUP...: the groups of stages at the same time
together() {
    jobs= failed=
    for group in "$@"; do stage 1 $group & jobs="$jobs $!"; done
    for job in $jobs; do wait "$job" || failed=1; done
    [ -z "$failed" ]
}

stage 2 data tokenizer
together "vae classifier" "clip mllm align"
stage 2 text_to_picture
together "tune dreambooth" "controlnet lora inversion"
python export.py "$work" "$out"
