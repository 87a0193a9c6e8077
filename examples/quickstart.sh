#!/usr/bin/env bash
# From text to a trained, evaluated, talking model, with the six packages' own commands.
# Start it again at any time: what is done stays done.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: examples/quickstart.sh [--tiny] [--print] [WORKDIR]

  WORKDIR  where everything is made (default: work)
  --tiny   a small corpus and 30 steps, in about a minute: for tests
  --print  print the commands and run none of them

Example: examples/quickstart.sh work
TEXT
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=work
TINY=no
PRINT=no
while [ $# -gt 0 ]; do
  case "$1" in
    --tiny) TINY=yes ;;
    --print) PRINT=yes ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "Error: unknown option $1" >&2; usage >&2; exit 2 ;;
    /*) WORK=${1%/} ;;
    *) WORK=$([ "$PWD" -ef "$ROOT" ] || echo "$PWD/")${1%/} ;;
  esac
  shift
done

cd "$ROOT"
QUICKSTART=examples/quickstart

CORPUS=() TRAIN=() GENERATE=(--max-new-tokens 80 --temperature 0.8 --seed 1)
if [ $TINY = yes ]; then
  CORPUS=(--train-bytes 600000 --heldout-bytes 15000)
  TRAIN=(train.max_steps=30 train.seq_length=128 optimizer.warmup_steps=3 save.every=10)
  GENERATE=(--max-new-tokens 16 --temperature 0.8 --seed 1)
fi

for command in python llm-data llm-ckpt llm-train llm-eval llm-infer; do
  if [ $PRINT = no ] && ! command -v "$command" >/dev/null; then
    echo "Error: $command is not on PATH. Run \`make quickstart\`, or \`make setup\` and" >&2
    echo "  PATH=$PWD/.venv/bin:\$PATH examples/quickstart.sh" >&2
    exit 1
  fi
done

# step NAME OUTPUTS HEADING COMMAND...: OUTPUTS are paths inside WORK with spaces between.
PREVIOUS=()
COUNT=0
STEPS=12
step() {
  local name=$1 outputs=$2 heading=$3
  shift 3
  if [ $PRINT = yes ]; then
    printf '%q ' "$@" && echo
    return
  fi
  COUNT=$((COUNT + 1))
  printf '\n[%d/%d] %s\n$' $COUNT $STEPS "$heading"
  printf ' %q' "$@" && echo
  # shellcheck disable=SC2086  # OUTPUTS is a list
  python $QUICKSTART/step.py --work "$WORK" --name "$name" ${PREVIOUS[@]+"${PREVIOUS[@]}"} \
    --makes $outputs -- "$@"
  PREVIOUS=(--after "$name")
}

step corpus corpus "Collect real text: the Python standard library's own source files" \
  python $QUICKSTART/corpus.py "$WORK/corpus" ${CORPUS[@]+"${CORPUS[@]}"}

step tokenizer tokenizer "Train a byte-level BPE tokenizer" \
  llm-data train-tokenizer "$WORK/corpus/train" --pattern '*.py' --vocab-size 8192 \
  --output "$WORK/tokenizer"

step data data "Turn the text into a memory-mapped token dataset" \
  llm-data preprocess "$WORK/corpus/train" --pattern '*.py' --tokenizer "$WORK/tokenizer" \
  --output "$WORK/data/train" --append-eod --workers 2

step init hf-init "Make a Qwen3-shaped model with random weights, as a Hugging Face folder" \
  llm-ckpt init $QUICKSTART/model.json --tokenizer "$WORK/tokenizer" --output "$WORK/hf-init" \
  --seed 1234

step convert mcore-init "Convert it to Megatron-core, cut for two tensor-parallel ranks" \
  llm-ckpt convert "$WORK/hf-init" --output "$WORK/mcore-init" --to mcore --tp 2

step train run "Train on two processes: tensor and sequence parallel, distributed optimizer" \
  llm-train run $QUICKSTART/train.yaml --nproc 2 "model.load=$WORK/mcore-init" \
  "data.train=[$WORK/data/train_text_document]" "save.path=$WORK/run" ${TRAIN[@]+"${TRAIN[@]}"}

step plot loss.png "Draw the loss curve" \
  llm-train plot "$WORK/run" --output "$WORK/loss.png"

step back hf-trained "Convert the trained checkpoint back to a Hugging Face folder" \
  llm-ckpt convert "$WORK/run" --output "$WORK/hf-trained" --to hf

step before eval-before "Perplexity on held-out files, before training" \
  llm-eval perplexity "$WORK/corpus/heldout" --pattern '*.py' --model "$WORK/hf-init" \
  --output "$WORK/eval-before"

step after eval-after "Perplexity on held-out files, after training" \
  llm-eval perplexity "$WORK/corpus/heldout" --pattern '*.py' --model "$WORK/hf-trained" \
  --output "$WORK/eval-after"

step compare "" "Compare the two" \
  llm-eval compare "$WORK/eval-before" "$WORK/eval-after"

step generate "" "Let the model write" \
  llm-infer generate "$WORK/hf-trained" --prompt 'def read(' "${GENERATE[@]}"

if [ $PRINT = no ]; then
  python $QUICKSTART/report.py "$WORK"
fi
