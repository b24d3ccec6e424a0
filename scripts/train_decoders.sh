#!/usr/bin/env bash
# Prefix adapter, corrector and learned code for one encoder, on one GPU, one after the other; run it again to go on where it stopped.
#
#     bash scripts/train_decoders.sh OUT INPUT...          training documents, as lsm reads them; not what you evaluate on
#     DRY_RUN=1 bash scripts/train_decoders.sh OUT INPUT   the same path in a few steps, on any CPU
#
# OUT/{adapter,corrector,learned-code}/final hold the weights and their cards. ENCODER=NAME takes another encoder than MiniLM; the learned
# code, last, needs one that gives its token states (a transformers model).
set -euo pipefail
out=$1
shift
configs=$(dirname "$0")/../configs
encoder=${ENCODER:-minilm}
device=(--device cuda)
short=() read_little=() few_lexical=() few_tokens=() few_hypotheses=()
if [[ ${DRY_RUN:-0} != 0 ]]; then
    device=(--device cpu)
    short=(--steps 2 --eval-every 2 --save-every 1 --optimizer.warmup-steps 1)
    read_little=(--reading.batch-positions 256 --reading.evaluation-sentences 8 --reading.held-out-fraction 0.2)
    few_lexical=(--lexical-stage.steps 1 --lexical-stage.batch-sentences 16)
    few_tokens=(--token-stage.steps 1 --token-stage.batch-sentences 16 --token-stage.negatives 64)
    few_hypotheses=(--reading.max-sentences 32 --chunk-sentences 16)
fi

lsm encode-corpus "$@" --out "$out/corpus" --encoder "$encoder" "${device[@]}"
train() { # NAME CONFIG OVERRIDE...
    lsm train-decoder --corpus "$out/corpus" --out "$out/$1" --config "$configs/$2" "${device[@]}" "${short[@]}" "${read_little[@]}" "${@:3}"
}
train adapter decoder-prefix-gpu.yaml "${few_lexical[@]}"
train corrector corrector-gpu.yaml --encoder "$encoder" --start-from "$out/adapter/final" "${few_hypotheses[@]}"
train learned-code learned-code-gpu.yaml --encoder "$encoder" "${few_tokens[@]}"
