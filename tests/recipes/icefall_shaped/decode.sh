#!/usr/bin/env bash
# Decode a test set with greedy CTC or greedy RNN-T, as an icefall recipe does.
#   bash decode.sh --manifest FILE --exp-dir DIR --tokens FILE [--method ctc-greedy-search|greedy-search] ...
set -eou pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python3}
log() { echo "$(date '+%F %T') (decode.sh) $*" >&2; }

# as path.sh does: the recipe's own folder in front of what was there
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
log "decoding"
"$python" ./decode.py "$@"
log "done"
