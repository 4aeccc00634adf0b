#!/usr/bin/env bash
# Test the teachers of public frameworks, each in a virtual environment of its own.
#
#   FRAMEWORKS="huggingface speechbrain"  which of them; all when not set
#   VENVS=FOLDER                          where the environments are kept
#   ICEFALL=CLONE  WENET=CLONE            also test the real models of clones
#   NEMO=CLONE  SPEECHBRAIN=CLONE         also test the programs of clones, unmodified
#
# Further arguments go to pytest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venvs=${VENVS:-${XDG_CACHE_HOME:-$HOME/.cache}/logitstore-frameworks}
mkdir -p "$venvs"
failed=()
for framework in ${FRAMEWORKS:-huggingface speechbrain icefall nemo espnet wenet}; do
    echo "== $framework"
    venv=$venvs/$framework
    [ "$framework" = wenet ] && venv=$venvs/espnet # the same packages
    if [ ! -e "$venv/installed" ]; then
        bash "$here/install.sh" "$framework" "$venv"
        touch "$venv/installed"
    fi
    # A skipped module is a failure here: the framework was installed to be tested.
    report=$(mktemp)
    programs=$here/test_programs_$framework.py
    [ -e "$programs" ] || programs=
    if ! "$venv/bin/python" -m pytest -rs "$here/test_$framework.py" $programs "$@" | tee "$report" ||
        grep -q "does not import" "$report"; then
        failed+=("$framework")
    fi
    rm -f "$report"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
