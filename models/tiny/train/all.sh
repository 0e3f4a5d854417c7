#!/bin/sh
# Trains everything and writes the folders that the loaders read. A finished stage is skipped and a stopped one goes on.
# usage: all.sh WORK OUT [cpu|gpu|smoke]   smoke: a few steps of each stage, to see that they run
# On a GPU, stages that do not need each other run at the same time: each of these networks alone is too small for it.
set -e
work=$1 out=$2 budget=${3:-cpu}
cd "$(dirname "$0")"
mkdir -p "$work" "$out/train"

stage() {
    for name in "$@"; do
        echo "== $name"
        python "$name.py" "$work" --budget "$budget" || { echo "$name failed or was stopped"; exit 1; }
    done
}

# Runs the groups of stages given, one after the other, or on a GPU together.
together() {
    if [ "$budget" != gpu ]; then for group in "$@"; do stage $group; done; return; fi
    jobs=
    for group in "$@"; do stage $group & jobs="$jobs $!"; done
    failed=
    for job in $jobs; do wait "$job" || failed=1; done
    [ -z "$failed" ]
}

stage data tokenizer
together vae clip
together classifier text_to_picture mllm
together "align tune" controlnet "lora inversion" dreambooth
python export.py "$work" "$out"
