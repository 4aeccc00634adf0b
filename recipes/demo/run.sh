#!/usr/bin/env bash
# Dump the demo utterances through the demo teacher, inspect, draw, convert and verify the store, and read a student's batch.
#
#   recipes/demo/run.sh [STORE]     PYTHON=python3 runs another interpreter; STORE is made anew
set -euo pipefail
store=${1:-demo-store}
python=${PYTHON:-python3}
repository=$(cd "$(dirname "$0")/../.." && pwd)
teacher=$repository/recipes/demo/teacher.py:load
manifest=$repository/manifests/demo.jsonl
logitstore() { echo "+ logitstore $*" >&2; "$python" -m logitstore "$@"; }

rm -rf "$store" "$store-webdataset"
logitstore dump --teacher "$teacher" --manifest "$manifest" --tokens "$repository/manifests/demo.tokens.txt" \
  --stream ctc=dense --stream rnnt=topk:16 --transcripts all --out "$store"
logitstore inspect "$store" --manifest "$manifest"
logitstore report "$store" --out "$store.html" --manifest "$manifest" --rate 1:2
logitstore convert "$store" "$store-webdataset" --storage webdataset
logitstore verify "$store"
logitstore verify "$store-webdataset"
"$python" "$repository/recipes/demo/student_batch.py" "$store"
