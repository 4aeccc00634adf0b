#!/usr/bin/env bash
# Make a virtual environment that holds one framework beside logitstore: install.sh FRAMEWORK FOLDER
#
# Torch goes first, and stays: left to themselves the frameworks pull another one, and gigabytes of CUDA.
set -euo pipefail
framework=$1 venv=$2
root=$(cd "$(dirname "$0")/../.." && pwd)
torch=${TORCH:-torch==2.13.0}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
"$venv/bin/python" -c 'import torch' 2>/dev/null || pip "$torch"
keep=$(mktemp)
trap 'rm -f "$keep"' EXIT
"$venv/bin/python" -c 'import torch; print("torch==" + torch.__version__.partition("+")[0])' >"$keep"

# torchaudio's binaries want the CUDA libraries of the torch they were built with, and fail to import beside
# a CPU torch. Without them the rest of it, plain Python, works; what is lost (rnnt_loss) no teacher calls.
plain_torchaudio() {
    "$venv/bin/python" -c 'import torchaudio' 2>/dev/null && return
    "$venv/bin/python" - <<'PY'
import pathlib, sysconfig

for binary in pathlib.Path(sysconfig.get_path("purelib"), "torchaudio").glob("lib/*.so"):
    binary.unlink()
PY
    "$venv/bin/python" -c 'import torchaudio'
}

case $framework in
huggingface)
    pip -c "$keep" "transformers==5.23.0" torchaudio # Granite Speech hears by torchaudio
    plain_torchaudio
    ;;
speechbrain)
    pip -c "$keep" "speechbrain==1.1.2"
    plain_torchaudio
    ;;
nemo) pip -c "$keep" "nemo_toolkit[asr]==3.0.0" ;;
espnet | wenet)
    # espnet asks for a setuptools older than torch allows: its own requirements are named here instead.
    pip -c "$keep" pyyaml typeguard humanfriendly librosa scipy kaldiio torch_complex torchaudio cloudpickle \
        sentencepiece einops editdistance nltk opt_einsum ci_sdr configargparse hydra-core h5py g2p_en jamo \
        unidecode jaconv fast_bss_eval langid tiktoken more-itertools
    pip -c "$keep" --no-deps "espnet==202511" espnet_tts_frontend openai-whisper
    plain_torchaudio
    ;;
icefall) ;; # its conventions need torch alone; ICEFALL=CLONE tests its zipformer too
*)
    echo "install.sh: no framework '$framework'" >&2
    exit 2
    ;;
esac
pip -c "$keep" --editable "$root[test]"
