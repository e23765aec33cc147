#!/usr/bin/env bash
# Starts a run on every host of a Cloud TPU slice from your own machine; see docs/clusters.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tpu_vm.sh [--dry-run] create | setup | run ARGUMENTS | logs | stop | delete

  create   create the slice
  setup    install this checkout (HEAD) on all hosts, with Python 3.12, JAX for TPU and the client of
           gs:// buckets; mount NFS if it is set
  run      run `rootstock ARGUMENTS` on all hosts, in the background
  logs     follow the output of the first host
  stop     stop the run on all hosts
  delete   delete the slice

--dry-run prints the commands instead of running them. Environment:
  TPU_NAME, ZONE     name and zone of the slice
  ACCELERATOR_TYPE   create: v5litepod-16, v5p-32, v6e-16 ...
  RUNTIME_VERSION    create: v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv5 (v5p), v2-alpha-tpuv6e (v6e)
  SPOT=1             create: a spot slice, cheaper but may be preempted
  NFS=HOST:/EXPORT   setup: mount this at /shared on every host, if paths are not in a bucket
TEXT
}

show() { printf '%q ' "$@"; echo; }
call() { "$@"; }
if [[ "${1:-}" == --dry-run ]]; then
  call() { show "$@"; }
  shift
fi
action="${1:-}"
[[ $# -gt 0 ]] && shift

tpu() { # ACTION [ARGUMENT...]
  call gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="${ZONE:?set ZONE}"
}

on() { # WORKER COMMAND
  tpu ssh "${TPU_NAME:?set TPU_NAME}" --worker="$1" --command="$2"
}

case "$action" in
  create)
    tpu create "${TPU_NAME:?set TPU_NAME}" --accelerator-type="${ACCELERATOR_TYPE:?set ACCELERATOR_TYPE}" \
      --version="${RUNTIME_VERSION:?set RUNTIME_VERSION}" ${SPOT:+--spot}
    ;;
  setup)
    archive="${TMPDIR:-/tmp}/rootstock.tar.gz"
    call git -C "$(dirname "$0")/../.." archive --format=tar.gz --output="$archive" HEAD
    tpu scp "$archive" "${TPU_NAME:?set TPU_NAME}:" --worker=all
    # The images have Python 3.10; uv installs Python 3.12.
    on all 'mkdir -p rootstock && tar -xzf rootstock.tar.gz -C rootstock && cd rootstock &&
      python3 -m pip install --user --quiet uv && export PATH="$HOME/.local/bin:$PATH" &&
      uv venv --clear --python=3.12 .venv && uv pip install --python=.venv --editable ".[tpu,tasks,gcs]"'
    if [[ -n "${NFS:-}" ]]; then
      on all "sudo apt-get install -y nfs-common && sudo mkdir -p /shared &&
        { mountpoint -q /shared || sudo mount -t nfs $(printf '%q' "$NFS") /shared; }"
    fi
    ;;
  run)
    [[ $# -gt 0 ]] || { usage >&2; exit 2; }
    on all "cd rootstock && { nohup .venv/bin/rootstock$(printf ' %q' "$@") > ../run.log 2>&1 < /dev/null &
      echo \$! > ../run.pid; }"
    ;;
  logs) on 0 'tail -n 100 -f run.log' ;;
  stop) on all 'kill "$(cat run.pid)"' ;;
  delete) tpu delete "${TPU_NAME:?set TPU_NAME}" --quiet ;;
  --help | -h) usage ;;
  *) usage >&2; exit 2 ;;
esac
