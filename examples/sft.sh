#!/usr/bin/env bash
# Fine-tune a model on conversations: tokenize, plan, train, and merge what is an adapter.
# Start it again at any time: what is done stays done.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: examples/sft.sh [--print] RECIPE MODEL CHATS WORKDIR [KEY=VALUE]...

  RECIPE   full, lora, qlora, packed or tools: a file of examples/sft
  MODEL    a Hugging Face folder
  CHATS    conversations, in any format that llm-data reads
  WORKDIR  where everything is made
  KEY=VALUE  changes of the recipe, such as parallel.tp=1
  --print  print the commands and run none of them

  TEMPLATE names the chat template (default: chatml), NPROC the ranks of this machine.

Example: examples/sft.sh lora Qwen3-8B chats.jsonl work parallel.tp=1
TEXT
}

RUN=run
run() { "$@"; }
show() { printf '%q ' "$@" && echo; }
if [ "${1:-}" = --print ]; then
  RUN=show
  shift
fi
[ $# -ge 4 ] || { usage >&2; exit 2; }
RECIPE=$1 MODEL=$2 CHATS=$3 WORK=$4
shift 4
HERE=$(dirname "${BASH_SOURCE[0]}")/sft
[ -f "$HERE/$RECIPE.yaml" ] || { echo "Error: no recipe $RECIPE in $HERE" >&2; exit 2; }

# The longest sequence is the recipe's, or what was asked for instead.
LENGTH=$(sed -n 's/^ *seq_length: *\([0-9]*\).*/\1/p' "$HERE/$RECIPE.yaml")
for word in "$@"; do
  case $word in train.seq_length=*) LENGTH=${word#*=} ;; esac
done
PACK=()
[ "$RECIPE" != packed ] || PACK=(--pack --seq-length "$LENGTH")
DATA=$WORK/data/$RECIPE
WORDS=(model.load="$MODEL" "data.train=[\"$DATA\"]" save.path="$WORK/$RECIPE" "$@")

$RUN llm-data preprocess "$CHATS" --task sft --template "${TEMPLATE:-chatml}" --tokenizer "$MODEL" \
  --output "$DATA" "${PACK[@]}"
$RUN llm-train plan "$HERE/$RECIPE.yaml" "${WORDS[@]}"
$RUN llm-train run "$HERE/$RECIPE.yaml" "${WORDS[@]}" ${NPROC:+--nproc "$NPROC"}
case $RECIPE in
  lora | qlora)
    ADAPTER=$(ls -d "$WORK/$RECIPE"/adapter_* 2>/dev/null | tail -1 || true)
    $RUN llm-ckpt merge-lora "$MODEL" "${ADAPTER:-$WORK/$RECIPE/adapter_NNNNNNN}" \
      --output "$WORK/$RECIPE/merged"
    ;;
esac
