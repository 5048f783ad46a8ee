# shellcheck shell=bash disable=SC2034
# Sourced by tools/test, tools/demo and .ci/run (bash): gives the checkout a Python environment that holds tfcompress.
#
#   prepare_environment dev|demo    makes, updates or repairs it, and sets PYTHON to its interpreter
#
# The environment lies in .venv, or in $TFCOMPRESS_VENV. A later call starts at once as long as setup.cfg and the checkout's
# place are the same; "demo" is a part of "dev", so an environment made for the tests serves the demo and is never cut down.
# A Python of your choice makes it when $TFCOMPRESS_PYTHON names one.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${TFCOMPRESS_VENV:-$ROOT/.venv}"
case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac

DEMO_EXTRAS="export,bench,methods,report"
DISK_NEEDED_MB=5000      # 3.5 GB of packages, and what pip keeps while it unpacks TensorFlow
DISK_NEEDED_UPDATE_MB=500

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}

python_version() { "$1" -c 'import sys; print("%d %d" % sys.version_info[:2])' 2>/dev/null; }

# Sets BASE_PYTHON. Those for which TensorFlow has wheels come first; a newer one is tried when it is all there is.
find_python() {
    local candidate major minor newer="" seen=""
    for candidate in ${TFCOMPRESS_PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        # A command may exist and still not run (a version manager's stub), so ask each what it is.
        read -r major minor <<<"$(python_version "$candidate")" || true
        [ -n "${major:-}" ] || continue
        seen="$seen $candidate ($major.$minor)"
        if [ "$major" -ne 3 ] || [ "$minor" -lt 11 ]; then continue; fi
        if [ "$minor" -le 13 ]; then
            BASE_PYTHON="$candidate"
            return
        fi
        newer="${newer:-$candidate}"
    done
    if [ -n "$newer" ]; then
        say "Only a Python newer than 3.13 was found: TensorFlow may have no packages for it yet."
        BASE_PYTHON="$newer"
        return
    fi
    fail "tfcompress needs Python 3.11 or newer, and there is none here (found:${seen:- nothing})." \
        "On Debian 12 or newer and Ubuntu 24.04 or newer: apt-get install -y python3 python3-venv"
}

# Debian ships Python without the module that makes environments.
need_venv_module() {
    "$BASE_PYTHON" -c 'import ensurepip, venv' 2>/dev/null && return
    local package install
    package="$("$BASE_PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    install="apt-get install -y $package"
    command -v apt-get >/dev/null || fail "$BASE_PYTHON lacks its modules venv and ensurepip: install them, then run this again."
    [ "$(id -u)" -eq 0 ] || fail "$BASE_PYTHON lacks its module venv. Install it with: sudo $install"
    say "Installing $package (the system's Python comes without it)"
    apt-get update -qq >/dev/null 2>&1 || true  # without a network, the lists and the package may be there all the same
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null 2>&1; then
        fail "Could not install $package. See what is wrong with: apt-get update && $install"
    fi
    "$BASE_PYTHON" -c 'import ensurepip, venv' 2>/dev/null || fail "$package is installed, yet $BASE_PYTHON still has no module venv."
}

need_disk() {  # need_disk MEGABYTES
    local free
    free="$(df -Pk "$(dirname "$VENV")" 2>/dev/null | awk 'NR == 2 { print int($4 / 1024) }')" || return 0
    [ -n "$free" ] || return 0
    [ "$free" -ge "$1" ] || fail "Not enough disk: the environment needs about $1 MB in $(dirname "$VENV")," \
        "and $free MB are free. Free some, or put it elsewhere with TFCOMPRESS_VENV=/path."
}

# What the installed environment depends on. Fails when the environment's own Python does not run.
fingerprint() {
    "$VENV/bin/python" - "$ROOT" <<'PY' 2>/dev/null
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
parts = [str(root).encode(), sys.version.encode()] + [(root / name).read_bytes() for name in ("setup.cfg", "pyproject.toml")]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PY
}

make_venv() {
    find_python
    need_venv_module
    mkdir -p "$(dirname "$VENV")" 2>/dev/null || fail "Cannot make the folder $(dirname "$VENV")."
    need_disk "$DISK_NEEDED_MB"
    say "Making the environment $VENV with $("$BASE_PYTHON" --version)"
    "$BASE_PYTHON" -m venv "$VENV" >/dev/null || fail "Cannot make the environment $VENV with $BASE_PYTHON (the reason stands above)."
}

# Shows pip's progress, a line now and then, and notes when it begins to change the environment.
follow_pip() {
    local line last=-100
    while IFS= read -r line; do
        case "$line" in
        Collecting\ *)
            if [ $((SECONDS - last)) -ge 10 ]; then
                printf '    %s s: fetching %s\n' "$((SECONDS - started))" "$(cut -d' ' -f2 <<<"$line")"
                last=$SECONDS
            fi
            ;;
        Installing\ collected\ packages*)
            : >"$VENV/tfcompress-installing"
            printf '    %s s: unpacking %s packages, the longest step\n' "$((SECONDS - started))" "$(tr ',' '\n' <<<"$line" | wc -l | tr -d ' ')"
            ;;
        esac
    done
}

explain_pip() {  # explain_pip LOG
    if grep -qE 'No space left on device|Errno 28|Disk quota exceeded' "$1"; then
        fail "The disk filled up while packages were installed. Free about $DISK_NEEDED_MB MB (TMPDIR names pip's scratch folder) and run this again."
    elif grep -qE 'NewConnectionError|Max retries exceeded|Retrying \(Retry|name resolution|ReadTimeoutError|ConnectTimeoutError|ProxyError|SSLError' "$1"; then
        fail "The package index cannot be reached, so nothing could be installed. Check the network, the proxy or PIP_INDEX_URL and run this again. pip's own words are in $1"
    elif ! grep -q '^ERROR' "$1"; then
        fail "The installation was interrupted. Run this again to finish it."
    fi
    tail -n 5 "$1" >&2
    fail "pip could not install tfcompress; its last words stand above, all of them are in $1"
}

install_packages() {  # install_packages EXTRAS NOTE
    local log="$VENV/tfcompress-install.log" started=$SECONDS
    say "Installing tfcompress with what it needs ($1)$2"
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --retries 2 \
        -e "${ROOT}[$1]" 2>&1 | tee "$log" | follow_pip; then
        explain_pip "$log"
    fi
    rm -f "$VENV/tfcompress-installing"
    say "Installed in $((SECONDS - started)) s"
}

# One run at a time may change the environment. (Without flock, on other systems than Linux, two first runs at once are on their own.)
lock_environment() {
    command -v flock >/dev/null || return 0
    mkdir -p "$ROOT/build" 2>/dev/null || fail "Cannot write to $ROOT."
    exec 9>"$ROOT/build/.environment.lock"
    flock -n 9 && return
    say "Waiting for another run that is making the environment"
    flock 9
}

make_environment() {  # make_environment dev|demo
    local wanted="$1" mark installed="" recorded="" extras
    # Below, a broken environment is deleted: never anything else.
    if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
        fail "$VENV is there, but it is no Python environment. Move it away, or name another place with TFCOMPRESS_VENV=/path."
    fi
    if [ -e "$VENV/tfcompress-installing" ]; then
        say "The last installation was interrupted: starting the environment anew"
        rm -rf "$VENV"
    elif [ -e "$VENV" ] && ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        say "The environment $VENV does not run: making it anew"
        rm -rf "$VENV"
    fi
    [ -e "$VENV/bin/python" ] || make_venv
    mark="$VENV/tfcompress-installed"
    [ -e "$mark" ] && read -r installed recorded <"$mark"
    [ "$installed" = dev ] && wanted=dev
    [ "$recorded" = "$(fingerprint)" ] && [ "$installed" = "$wanted" ] && return
    extras="$DEMO_EXTRAS"
    [ "$wanted" = dev ] && extras=dev
    if [ -n "$installed" ]; then
        need_disk "$DISK_NEEDED_UPDATE_MB"
        install_packages "$extras" ", since setup.cfg, the checkout's place or what is asked for changed"
    else
        need_disk "$DISK_NEEDED_MB"
        install_packages "$extras" "; up to 1.5 GB are fetched the first time"
    fi
    printf '%s %s\n' "$wanted" "$(fingerprint)" >"$mark"
}

prepare_environment() {  # prepare_environment dev|demo
    local mark="$VENV/tfcompress-installed" installed="" recorded=""
    [ -e "$mark" ] && read -r installed recorded <"$mark"
    if [ "$recorded" != "$(fingerprint)" ] || { [ "$installed" != dev ] && [ "$installed" != "$1" ]; } ||
        [ -e "$VENV/tfcompress-installing" ]; then
        lock_environment
        make_environment "$1"
        exec 9>&-
    fi
    PYTHON="$VENV/bin/python"
    # Quiet TensorFlow; its GPU search and JAX's print warnings on machines without one.
    export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
}
