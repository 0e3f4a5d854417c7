#!/bin/sh
# Trains everything; a stage that is done is skipped. usage: all.sh WORK OUT [SPEED]   (SPEED 2 doubles every stage's minutes)
set -e
cd "$(dirname "$0")"
W=$1; O=$2; S=${3:-1}; m() { python -c "print($1*$S)"; }
mkdir -p "$W"
stage() { [ -e "$W/done.$1" ] && return; n=$1; shift; python "$@"; touch "$W/done.$n"; }
stage world world.py "$W/data" 12288
stage tokenizer tokenizer.py "$W"
stage vae vae.py "$W" "$(m 25)"
stage vit align.py "$W" vit "$(m 15)"
stage text text_to_picture.py "$W" "$(m 40)"
stage align align.py "$W" align "$(m 15)"
stage controlnet controlnet.py "$W" "$(m 7)"
stage variant variant.py "$W" "$(m 5)"
python export.py "$W" "$O"
