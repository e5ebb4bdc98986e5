#!/usr/bin/env bash
# Everything that needs a GPU, in one command:
#
#   bench/gpu.sh [-o FOLDER] [tests] [bench] [sanitize]        default: all three
#
# tests     the kernel suite natively, then under the lowering of each architecture in LOWERINGS
# bench     the kernel benchmarks, natively and under the sm_89 lowering
# sanitize  compute-sanitizer memcheck and racecheck on a small part of the suite
#
# Needs pytest and pytest-xdist. Results go to FOLDER (default: a new temporary one); the exit code is that of the worst step.
# Peers (DeepGEMM, FlashMLA, sgl_kernel) are compared with where they import; PEERS may name a folder
# to put before the path.
set -uo pipefail
cd "$(dirname "$0")/.."

LOWERINGS=${LOWERINGS:-"sm89 sm86 sm80 sm120"}
JOBS=${JOBS:-8}
SELECT=${SELECT:-tests/kernels}
# One or two small tests of every kernel: the checkers slow a kernel down a hundred times.
SMALL=${SMALL:-"clean_logits or zero_tiles or never_reads or strided_query or page_tables_and or one_dimensional"}
out=
[ "${1:-}" = -o ] && { out=$2; shift 2; }
out=${out:-$(mktemp -d)}
steps=${*:-tests bench sanitize}
mkdir -p "$out"
export PYTHONPATH="$PWD${PEERS:+:$PEERS}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
worst=0

step() { # NAME COMMAND... : run, keep the log, show its end
    local name=$1 begin=$SECONDS
    shift
    "$@" >"$out/$name.log" 2>&1
    local code=$?
    echo "== $name: exit $code, $((SECONDS - begin)) s"
    grep -E '^(FAILED|ERROR)' "$out/$name.log" | cut -c1-220 | head -25
    tail -n 3 "$out/$name.log" | cut -c1-300
    [ "$code" -eq 0 ] || worst=$code
}

suite() { # LOWERING ('' is native)
    local name=${1:-native}
    # shellcheck disable=SC2086
    step "tests-$name" env ${1:+TRITON_OVERRIDE_ARCH=$1} TRITON_CACHE_DIR="$out/.triton-$name" \
        python3 -m pytest -m gpu $SELECT -q -p no:cacheprovider -n "$JOBS" --tb=short
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for word in $steps; do
    case $word in
    tests)
        suite ''
        for lowering in $LOWERINGS; do suite "$lowering"; done
        ;;
    bench)
        step bench-native python3 bench/run.py --json "$out/bench-native.json"
        step bench-sm89 env TRITON_OVERRIDE_ARCH=sm89 python3 bench/run.py --json "$out/bench-sm89.json"
        ;;
    sanitize)
        for check in memcheck racecheck; do
            # shellcheck disable=SC2086
            step "sanitize-$check" compute-sanitizer --tool "$check" --error-exitcode 9 \
                python3 -m pytest -m gpu -k "$SMALL" $SELECT -q -p no:cacheprovider --tb=short
        done
        ;;
    *) echo "unknown step $word" >&2 && exit 2 ;;
    esac
done
rm -rf "$out"/.triton-*
exit "$worst"
