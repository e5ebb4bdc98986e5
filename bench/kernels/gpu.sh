#!/usr/bin/env bash
# Run the kernels' GPU tests and benchmarks in one command:
#
#   bench/kernels/gpu.sh [-o FOLDER] [tests] [bench] [sanitize] [sweep]        default: all but sweep
#
# tests     the kernel suite, natively and under the lowering of each architecture in LOWERINGS
# bench     the kernel benchmarks, natively and under the sm_89 lowering; GROUP selects groups
# sanitize  compute-sanitizer's memcheck and racecheck on a small launch of every kernel
# sweep     the sweep of configurations, natively and under the sm_89 lowering, SWEEP_SECONDS each
#
# This needs pytest and pytest-xdist. Results go to FOLDER (default: a new temporary one). A step that takes
# longer than STEP_SECONDS is stopped. The exit code is that of the last step that failed. DeepGEMM, FlashMLA,
# sgl_kernel, flashinfer and TileLang are compared with if they can be imported; PEERS may name a folder to put
# on PYTHONPATH.
set -uo pipefail
cd "$(dirname "$0")/../.."

LOWERINGS=${LOWERINGS:-"sm89 sm86 sm80 sm120"}
JOBS=${JOBS:-8}
SELECT=${SELECT:-tests/ada_dsa}
SANITIZED=${SANITIZED:-tests/ada_dsa/test_sanitized.py}
GROUP=${GROUP:-}
SWEEP_SECONDS=${SWEEP_SECONDS:-90}
STEP_SECONDS=${STEP_SECONDS:-580}
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
    timeout -k 10 "$STEP_SECONDS" "$@" >"$out/$name.log" 2>&1
    local code=$?
    [ "$code" -ne 124 ] || echo "== $name: stopped after $STEP_SECONDS s"
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
        step bench-native env TRITON_CACHE_DIR="$out/.triton-native" \
            python3 -m bench.kernels.run --group "$GROUP" --json "$out/bench-native.json"
        step bench-sm89 env TRITON_OVERRIDE_ARCH=sm89 TRITON_CACHE_DIR="$out/.triton-sm89" \
            python3 -m bench.kernels.run --group "$GROUP" --json "$out/bench-sm89.json"
        ;;
    sanitize)
        # The caches of the tests spare the checkers the compilations.
        for check in memcheck racecheck; do
            # shellcheck disable=SC2086
            step "sanitize-$check" env TRITON_CACHE_DIR="$out/.triton-native" \
                compute-sanitizer --tool "$check" --error-exitcode 9 \
                python3 -m pytest -m gpu $SANITIZED -q -p no:cacheprovider --tb=short
        done
        ;;
    sweep)
        step sweep-native env TRITON_CACHE_DIR="$out/.triton-native" \
            python3 -m bench.kernels.sweep --seconds "$SWEEP_SECONDS" --json "$out/sweep-native.json"
        step sweep-sm89 env TRITON_OVERRIDE_ARCH=sm89 TRITON_CACHE_DIR="$out/.triton-sm89" \
            python3 -m bench.kernels.sweep --seconds "$SWEEP_SECONDS" --json "$out/sweep-sm89.json"
        ;;
    *) echo "unknown step $word; the first lines of bench/kernels/gpu.sh list them" >&2 && exit 2 ;;
    esac
done
rm -rf "$out"/.triton-*
exit "$worst"
