#!/usr/bin/env bash
# Soft tokens for both LMs (kept tokens with their states, LoRA in the reader, distillation) and their scoreboards, on one GPU; run it again to go on.
#
#     bash scripts/train_compress.sh OUT EVALUATION TRAIN...        question files: JSONL with text, question, answers, title, or hf:…
#     DRY_RUN=1 bash scripts/train_compress.sh OUT EVALUATION TRAIN    the same path in a few steps on any CPU, with the built-in stub LM
#
# OUT/LM/final holds each compressor, OUT/LM.json its scoreboard, the second one's with both LMs rescoring each other's answers.
set -euo pipefail
out=$1 evaluation=$2
shift 2
configs=$(dirname "$0")/../configs
lms=(smollm2-135m-instruct gemma3-270m)
layers=(21 9) states=("7 9 11 13 15 17 19 21" "5 11 17")
device=(--device cuda)
short=() few=(--questions 1000) sentences=minilm
if [[ ${DRY_RUN:-0} != 0 ]]; then
    lms=(stub stub) layers=(1 2) states=(1 1)
    device=(--device cpu)
    short=(--steps 2 --eval-every 2 --save-every 1 --optimizer.warmup-steps 1 --ratios 4 8 --encoder.lora-rank 2 --encoder.hidden 8
        --objectives.spans-steps 1 --data.contexts 2 --data.max-context-tokens 600 --data.evaluation-questions 4
        --data.held-out-fraction 0.3 --precision float32 --threads 1)
    few=(--questions 4 --resamples 20)
    sentences=stub
fi
mkdir -p "$out"
beside=()
for number in 0 1; do
    run=$out/$number-${lms[$number]}
    read -ra depths <<<"${states[$number]}"
    lsm compress train "$@" --config "$configs/compress.yaml" --lm "${lms[$number]}" --out "$run" "${device[@]}" "${short[@]}" \
        --encoder.layer "${layers[$number]}" --encoder.states "${depths[@]}"
    lsm compress eval "$run" "$evaluation" --json "$run.json" --sentence-encoder "$sentences" "${device[@]}" "${few[@]}" "${beside[@]}"
    beside=(--beside "$run")
done
