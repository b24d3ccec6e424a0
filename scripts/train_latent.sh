#!/usr/bin/env bash
# The latent transformer to ship and one to measure, on one GPU; run it again to go on where it stopped.
#
#     bash scripts/train_latent.sh OUT JUDGED INPUT...          JUDGED: held-out documents; INPUT: training documents, openly licensed to ship
#     DRY_RUN=1 bash scripts/train_latent.sh OUT JUDGED INPUT   the same path in a few steps, on any CPU
#
# OUT/25m and OUT/100m are runs, OUT/words goes on from OUT/25m with the next sentence's tokens through the frozen decoder and the KL against
# the LM that reads the text; OUT/*.json are their scoreboards on JUDGED; OUT/packed is OUT/25m in int8 with its card. Sentences/s and MFU are
# in each run's sessions.jsonl. CORPUS=DIR takes a corpus that is already encoded; ENCODER=NAME takes another encoder than MiniLM, and then
# ADAPTER=FOLDER one that words its vectors.
set -euo pipefail
out=$1 judged=$2
shift 2
root=$(dirname "$0")/..
device=(--device cuda)
adapter=(${ADAPTER:+--adapter "$ADAPTER"})
short=() few_words=(--objectives.words-sentences 256) places=100
if [[ ${DRY_RUN:-0} != 0 ]]; then
    device=(--device cpu)
    short=(--steps 2 --eval-every 2 --save-every 2 --optimizer.warmup-steps 1 --accumulate 1 --data.batch-sentences 256)
    short+=(--data.eval-sentences 256 --data.held-out-fraction 0.2 --model.hidden 64 --model.layers 1 --model.heads 4)
    few_words=(--objectives.words-sentences 4) places=3
fi

corpus=${CORPUS:-$out/corpus}
[[ -n ${CORPUS:-} ]] || lsm encode-corpus "$@" --out "$corpus" --encoder "${ENCODER:-minilm}" "${device[@]}"
lsm encode-corpus "$judged" --out "$out/judged" --encoder "${ENCODER:-minilm}" "${device[@]}"
train() { # NAME CONFIG OVERRIDE...
    lsm pretrain --corpus "$corpus" --out "$out/$1" --config "$root/configs/$2" "${device[@]}" "${short[@]}" "${@:3}"
    lsm evaluate "$out/$1" --corpus "$out/judged" --train-corpus "$corpus" --wording "$places" "${adapter[@]}" --json "$out/$1.json" "${device[@]}"
}
train 25m latent-25m.yaml
[[ -d $out/packed ]] || python "$root/scripts/pack_latent.py" "$out/25m" --out "$out/packed" --scores "$out/25m.json"
train words latent-25m.yaml --start-from "$out/25m" --steps 300 --optimizer.warmup-steps 30 --optimizer.lr 1e-4 "${short[@]}" \
    --objectives.words 0.3 --objectives.text-lm 0.1 "${adapter[@]}" "${few_words[@]}"
train 100m latent-12gb.yaml
