#!/usr/bin/env bash
# Dump a teacher's logits with N parallel jobs on this machine, then index and check the store.
#
#   bin/dump_logits.sh --teacher FILE.py:NAME --manifest FILE.jsonl --out STORE [--key value ...] [-- DUMP OPTIONS]
#
# Stages: 1 dump (N jobs, each its own writer into one store), 2 index, 3 verify, 4 inspect.
# Running it again does only what is missing. The finished store is the same for any --nj.
# Options after -- are passed on to `logitstore dump`: -- --encoding auto --allow-different teacher.name
# SIGTERM and SIGINT are forwarded to the jobs; they seal what is complete, and the script waits for them.
set -euo pipefail

stage=1             # first stage to run
stop_stage=4        # last stage to run
nj=1                # number of parallel jobs; each loads the teacher once
cmd=                # program that starts jobs, as run.pl or slurm.pl: called with JOB=1:NJ LOG COMMAND; empty: this machine
teacher=            # FILE.py:NAME or FRAMEWORK:WHERE, as --teacher of logitstore dump
manifest=           # the utterances, in any format that logitstore reads
out=                # the store; made, or resumed
streams="ctc=dense" # streams and encodings, separated by spaces, e.g. "ctc=dense rnnt=topk:16", "ctc=auto"
hidden=             # layers to store, separated by spaces: "encoder.layers.3 mid=encoder.layers.1"
storage=zarr        # storage backend: zarr, zarr:zstd, zarr:blosc, webdataset
batch_seconds=120   # seconds of audio in a batch of the teacher
shard_size=auto     # utterances of a shard (500), its audio (90s, 30m, 2h), its bytes (256MB), or several: 256MB,2h
device=cpu          # device of the teacher; "cuda" gives job i the device cuda:(i mod number of GPUs)
on_error=raise      # raise, or skip to leave out utterances that fail
max_skipped=100%    # stop when more utterances are skipped: a number, or a share
limit=0             # use only the first utterances of the manifest; 0 for all
chunk=              # seconds of a chunk of longer recordings; empty: recordings run whole
overlap=            # seconds that a chunk shares with the next
transcripts=ctc     # streams whose greedy decode is stored: none, ctc, all
manifest_format=    # jsonl, nemo, kaldi, lhotse, wenet, huggingface; empty: recognised from the files
max_wer=50          # percent; stop when the first utterances have a higher word error rate
skip_checks=        # reason why a teacher that a check would refuse is right; it is stored
tokens=             # token table that the teacher's must equal
audio_root=         # folder that relative audio paths start from
threads=2           # threads of each job that load audio
logdir=             # folder of the jobs' logs; empty: $out.log
python=${PYTHON:-}  # interpreter; empty: the one that logitstore was installed with, else python3

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; echo; echo "Options, with their defaults:"; sed -n '/^stage=1/,/^python=/s/^\([a-z_]*\)=\(.*\)$/  --\1 \2/p' "$0" | sed '$d; s/_/-/g'; }

skipped=0
while [ $# -gt 0 ]; do
  case "$1" in
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    --*)
      name=$(printf %s "${1#--}" | tr - _)
      case " stage stop_stage nj cmd teacher manifest out streams hidden storage batch_seconds shard_size device on_error max_skipped limit chunk overlap transcripts manifest_format max_wer skip_checks tokens audio_root threads logdir python " in
        *" $name "*) ;;
        *) echo "$0: no option $1 (try --help)" >&2; exit 2 ;;
      esac
      [ $# -ge 2 ] || { echo "$0: $1 needs a value" >&2; exit 2; }
      printf -v "$name" %s "$2"; shift 2 ;;
    *) echo "$0: unexpected argument $1: options are --key value (try --help)" >&2; exit 2 ;;
  esac
done
more=("$@")  # options after --
for name in stage stop_stage nj; do
  case "${!name}" in ''|*[!0-9]*) echo "$0: --$name needs a number, not '${!name}'" >&2; exit 2 ;; esac
done
[ "$nj" -ge 1 ] || { echo "$0: --nj is at least 1" >&2; exit 2; }
[ -n "$out" ] || { echo "$0: --out is needed (try --help)" >&2; exit 2; }
logdir=${logdir:-$out.log}
beside=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/python
[ -n "$python" ] || { [ -x "$beside" ] && python=$beside || python=python3; }

log() { echo "$(date '+%F %T') (dump_logits.sh) $*" >&2; }
run() { "$python" -m logitstore "$@"; }

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  [ -n "$teacher" ] && [ -n "$manifest" ] || { echo "$0: --teacher and --manifest are needed" >&2; exit 2; }
  log "stage 1: dump with $nj jobs; logs in $logdir/dump.*.log"
  mkdir -p "$logdir"
  args=(dump --teacher "$teacher" --manifest "$manifest" --out "$out" --storage "$storage"
        --batch-seconds "$batch_seconds" --shard-size "$shard_size" --on-error "$on_error"
        --limit "$limit" --threads "$threads" --max-wer "$max_wer" --max-skipped "$max_skipped"
        --transcripts "$transcripts")
  for s in $streams; do args+=(--stream "$s"); done
  for s in $hidden; do args+=(--hidden "$s"); done
  [ -z "$chunk" ] || args+=(--chunk "$chunk")
  [ -z "$overlap" ] || args+=(--overlap "$overlap")
  [ -z "$manifest_format" ] || args+=(--manifest-format "$manifest_format")
  [ -z "$skip_checks" ] || args+=(--skip-checks "$skip_checks")
  [ -z "$tokens" ] || args+=(--tokens "$tokens")
  [ -z "$audio_root" ] || args+=(--audio-root "$audio_root")
  args+=(${more[@]+"${more[@]}"})
  # One file for all jobs: programs such as run.pl pass arguments through a shell, which would split them.
  {
    echo '#!/usr/bin/env bash'
    echo '# Job $1 of a dump, counted from 1; written by dump_logits.sh. Leaves its exit status in a file.'
    echo 'set -um  # jobs in groups of their own: a signal to this group reaches the dump once, through the trap'
    printf 'job=$1 nj=%q device=%q python=%q logdir=%q\n' "$nj" "$device" "$python" "$logdir"
    printf 'args=('; printf '%q ' "${args[@]}"; echo ')'
    cat <<'JOB'
if [ "$device" = cuda ]; then
  gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
  [ "${gpus:-0}" -eq 0 ] || device=cuda:$(((job - 1) % gpus))
fi
pid=
trap 'caught=1; [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null' TERM
trap 'caught=1; [ -z "$pid" ] || kill -INT "$pid" 2>/dev/null' INT
"$python" -m logitstore "${args[@]}" --device "$device" --job "$((job - 1))/$nj" &
pid=$!
while :; do
  caught= status=0
  wait "$pid" || status=$?
  [ -n "$caught" ] || break
done
echo "$status" >"$logdir/dump.$job.status"
[ "$status" -ne 3 ] || status=0  # some utterances skipped: no failure
exit "$status"
JOB
  } >"$logdir/dump_job.sh"
  rm -f "$logdir"/dump.*.status
  pids=() signal=
  forward() {
    caught=1 signal=$1
    log "SIG$1: the jobs stop at the next batch and seal what is complete; waiting for them"
    for pid in ${pids[@]+"${pids[@]}"}; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
  }
  trap 'forward TERM' TERM
  trap 'forward INT' INT
  set -m  # every job in a process group of its own, so that signals go through forward() alone
  if [ -n "$cmd" ]; then
    $cmd JOB=1:"$nj" "$logdir/dump.JOB.log" bash "$logdir/dump_job.sh" JOB &
    pids+=($!)
  else
    for ((i = 1; i <= nj; i++)); do
      bash "$logdir/dump_job.sh" "$i" >"$logdir/dump.$i.log" 2>&1 &
      pids+=($!)
    done
  fi
  set +m
  worst=0
  for pid in "${pids[@]}"; do
    while :; do
      caught='' status=0
      wait "$pid" || status=$?
      [ -n "$caught" ] || break
    done
    while kill -0 -- "-$pid" 2>/dev/null; do sleep 0.1 || true; done  # jobs of a $cmd that ended before them
    [ $status -eq 0 ] || [ -z "$cmd" ] || worst=$status
  done
  trap - INT TERM
  for ((i = 1; i <= nj; i++)); do
    status=$(cat "$logdir/dump.$i.status" 2>/dev/null || echo 1)
    if [ "$status" -eq 3 ]; then
      skipped=3
      log "job $i: done, some utterances skipped"
    elif [ "$status" -ne 0 ]; then
      log "job $i ended with status $status; the end of $logdir/dump.$i.log:"
      tail -n 12 "$logdir/dump.$i.log" >&2 || true
      [ $worst -ne 0 ] || worst=$status
    fi
  done
  grep -hs 'no shard for this job' "$logdir"/dump.*.log | tail -n 1 >&2 || true
  [ "$signal" != TERM ] || worst=143
  [ "$signal" != INT ] || worst=130
  if [ $worst -ne 0 ]; then
    log "sealed shards are kept; run the same command again to continue"
    exit $worst
  fi
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  log "stage 2: index"
  run index "$out"
fi

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  log "stage 3: verify"
  run verify "$out"
fi

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
  log "stage 4: inspect"
  run inspect "$out"
fi
exit $skipped
