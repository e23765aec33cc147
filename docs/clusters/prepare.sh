#!/usr/bin/env bash
# Prepares a token store with Slurm: each stage is an array whose tasks share a directory or a bucket, and nothing else.
# ARRAY=64 bash docs/clusters/prepare.sh --input='/shared/text/*.jsonl' --output=/shared/stores/text --tokenizer=DIR
#
# SBATCH_ARGS: more arguments of sbatch, such as --partition=cpu --time=4:00:00.
set -euo pipefail

array="${ARRAY:-64}"
read -ra more <<< "${SBATCH_ARGS:-}"

# stage TASKS: submits one stage, which starts when the stage before it has ended well.
previous=""
stage() {
  local tasks="$1"
  shift
  previous=$(sbatch --parsable --job-name=rootstock-prepare --array="0-$((tasks - 1))" --ntasks=1 \
    --cpus-per-task="${CPUS:-8}" --requeue --output=prepare-%A-%a.log \
    ${previous:+--dependency="afterok:$previous"} "${more[@]}" \
    --wrap "$(printf '%q ' "${ROOTSTOCK:-.venv/bin/rootstock}" prepare "$@") --unit=\$SLURM_ARRAY_TASK_ID/$tasks")
  echo "submitted $previous: $tasks tasks"
}

stage "$array" "$@"  # hash the files
stage "$array" "$@"  # read the units
stage 1 "$@"         # find duplicates, split, train or copy the tokenizer
stage "$array" "$@"  # tokenize
stage "$array" "$@"  # gather the shards
stage 1 "$@"         # checksums and manifest
