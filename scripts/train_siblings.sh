#!/usr/bin/env bash
# The siblings on one frozen LM, on one GPU, one after the other; run it again to go on where it stopped.
#
#     bash scripts/train_siblings.sh OUT SECTION...             SECTION: reason
#     DRY_RUN=1 bash scripts/train_siblings.sh OUT SECTION...   the same path in a few steps of the stubs, on any CPU
#
# reason: the reasoning stack with each middle (mlp, transformer, gru, identity) and the mlp with LoRA layers in the LM, each judged on
# held-out dialogues beside the identity. OUT/reason/NAME is a run, NAME.json its scoreboard, NAME-eval its table and texts.
#   TRAIN, JUDGED   rows with `text` and `summaries` (default: SAMSum from the hub, whose fields are named below)
#   LMS             frozen LMs, separated by spaces (default: gpt2 HuggingFaceTB/SmolLM2-135M-Instruct)
set -euo pipefail
out=$1
shift
configs=$(dirname "$0")/../configs
device=(--device cuda)
[[ ${DRY_RUN:-0} == 0 ]] || device=(--device cpu)

reason() {
    local few=()
    local train=${TRAIN:-hf:knkarthick/samsum:train} judged=${JUDGED:-hf:knkarthick/samsum:test}
    local config=reason.yaml fields=() short=() lms=${LMS:-gpt2 HuggingFaceTB/SmolLM2-135M-Instruct} lm kind name rank
    [[ -n ${TRAIN:-} ]] || fields=(--data.inputs dialogue --data.target summary)
    if [[ ${DRY_RUN:-0} != 0 ]]; then
        config=reason-tiny.yaml lms=stub short=(--steps 2 --eval-every 2 --save-every 2 --optimizer.warmup-steps 1 --data.max-rows 40)
    fi
    for lm in $lms; do
        for name in identity mlp transformer gru mlp-lora; do
            kind=${name%-lora} rank=0
            [[ $name == "$kind" ]] || rank=8
            local run=$out/reason/${lm##*/}-$name
            lsm reason train "$train" --out "$run" --config "$configs/$config" --lm "$lm" --stack.middle.kind "$kind" \
                --stack.expansion.lora-rank "$rank" "${fields[@]}" "${short[@]}" "${device[@]}"
            local beside=(--beside "$out/reason/${lm##*/}-identity")
            [[ $name != identity ]] || beside=()
            [[ ${DRY_RUN:-0} == 0 ]] || few=(--limit 4 --max-new-tokens 4)
            lsm reason eval "$run" "$judged" "${beside[@]}" "${few[@]}" --out "$run-eval" --json "$run.json" "${device[@]}"
        done
        [[ ${DRY_RUN:-0} == 0 ]] || few=(--limit 20 --clusters 3 --max-new-tokens 4)
        lsm reason map "$out/reason/${lm##*/}-mlp" "$judged" "${few[@]}" --out "$out/reason/${lm##*/}-map" "${device[@]}"
    done
}

for section in "$@"; do
    case $section in
        reason) "$section" ;;
        *) echo "no section $section; there is: reason" >&2; exit 2 ;;
    esac
done
