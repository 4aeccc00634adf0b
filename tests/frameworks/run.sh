#!/usr/bin/env bash
# Test the teachers of public frameworks, each in a virtual environment of its own, and say at the end what ran.
#
#   FRAMEWORKS="huggingface speechbrain"  which of them; all when not set
#   VENVS=FOLDER                          where the environments and clones are kept
#   ICEFALL=CLONE  WENET=CLONE            clones to test instead of those of the pinned commits
#   NEMO=CLONE  SPEECHBRAIN=CLONE         also test the programs of clones, unmodified
#
# Further arguments go to pytest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venvs=${VENVS:-${XDG_CACHE_HOME:-$HOME/.cache}/logitstore-frameworks}
mkdir -p "$venvs"
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
failed=()

# icefall and WeNet are in no package index. Where they cannot be had, their real models are skipped, as the table says.
clone() { # FOLDER URL COMMIT
    [ -e "$1/.git" ] && return
    git init -q "$1.part" && git -C "$1.part" fetch -q --depth 1 "$2" "$3" &&
        git -C "$1.part" checkout -q FETCH_HEAD && mv "$1.part" "$1" || rm -rf "$1.part"
}

for framework in ${FRAMEWORKS:-huggingface speechbrain icefall nemo espnet wenet}; do
    echo "== $framework"
    venv=$venvs/$framework
    case $framework in
    icefall)
        [ -n "${ICEFALL:-}" ] || clone "$venvs/icefall-clone" https://github.com/k2-fsa/icefall \
            36e0420c7e3e849a25b3d24dbf913c424f3d23c9
        [ -n "${ICEFALL:-}" ] || [ ! -e "$venvs/icefall-clone" ] || export ICEFALL=$venvs/icefall-clone
        ;;
    wenet)
        venv=$venvs/espnet # the same packages
        [ -n "${WENET:-}" ] || clone "$venvs/wenet-clone" https://github.com/wenet-e2e/wenet \
            015469960db73eb19c49a48c020d5ac9db69bae5
        [ -n "${WENET:-}" ] || [ ! -e "$venvs/wenet-clone" ] || export WENET=$venvs/wenet-clone
        ;;
    esac
    if ! cmp -s "$here/install.sh" "$venv/installed"; then # by this very script, not by one before it
        bash "$here/install.sh" "$framework" "$venv"
        cp "$here/install.sh" "$venv/installed"
    fi
    # A skipped module is a failure here: the framework was installed to be tested.
    report=$reports/$framework
    if ! "$venv/bin/python" -m pytest -rs --junitxml "$report.xml" "$here"/test_*"$framework"*.py "$@" |
        tee "$report.txt" || grep -q "does not import" "$report.txt"; then
        failed+=("$framework")
    fi
    "$venv/bin/python" "$here/tally.py" "$framework" "$report.xml" >>"$reports/table" || true
done
echo
printf '%-12s %-34s %7s %7s %7s\n' framework version passed skipped failed
cat "$reports/table"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
