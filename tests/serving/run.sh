#!/usr/bin/env bash
# Everything that serves a model on a GPU, in one command:
#
#   tests/serving/run.sh [-o FOLDER] [STEP ...]
#
# check         import sglang and all it needs, stock and forked
# verify        check the installed fork against series.lock
# kit           sglang's own DSA attention kit against ada_dsa, natively and under the sm_89 lowering
# fusion        the shared expert in the grouped kernel and on its own
# serve         stock and fork, natively and under other lowerings, against the witness
# hicache       a prompt that comes back from the host's memory
# speculation   drafts of the prediction layer; answers that are right to the word
# deepseek      DeepSeek-V3.2's shape
# flash         GLM-5.3-Flash's shape: a pooled index, linear attention, drafts
# parallel      two GPUs: tensor, data and pipeline parallel, drafts on two stages
# soak          SOAK seconds (default 600) of mixed load on SOAK_FLAVOUR (default fork-sm89)
# bench8        decode and prefill times of a model with 8 heads, into FOLDER/serve-8.json; bench64 of one with 64
# drafts        tokens a second with drafts and without, into FOLDER/drafts.json
#
# Default: all but the benchmarks. Steps joined by + run at the same time. A step takes the GPUs that follow its
# name: soak@2+serve@0+parallel@0,1+kit@1. Needs the folders of support/stage.py. A step ends after LIMIT seconds
# (default 900) at the latest, flash after twice that, the soak after SOAK + LIMIT. Logs and results go to FOLDER
# (default: a new temporary one). The exit code is that of the worst step.
set -uo pipefail
cd "$(dirname "$0")/../.."

LIMIT=${LIMIT:-900}
SOAK=${SOAK:-600}
home=${ADA_GPU_HOME:-$HOME/.cache/ada-dsa/gpu}
out=
[ "${1:-}" = -o ] && { out=$2; shift 2; }
out=${out:-$(mktemp -d)}
steps=${*:-check+verify kit+fusion serve hicache speculation deepseek flash parallel soak}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export ADA_GPU_HOME=$home ADA_GPU_OUT=$out PYTHONUNBUFFERED=1 GIT_PYTHON_REFRESH=quiet
export PYTHONPATH="$PWD:$home/stack${PYTHONPATH:+:$PYTHONPATH}"
export CPATH="$home/stack/nvidia/cu13/include" PYTORCH_SKIP_CUDNN_COMPATIBILITY_CHECK=1
# nvcc may be a link elsewhere: what compiles at run time looks for the libraries beside it.
[ -n "${CUDA_HOME:-}" ] || { [ -d /usr/local/cuda/lib64 ] && export CUDA_HOME=/usr/local/cuda; }
worst=0

step() { # NAME COMMAND... : run, keep the log, show its end
    local name=$1 begin=$SECONDS
    shift
    timeout -k 15 "$LIMIT" "$@" >"$out/$name.log" 2>&1
    local code=$?
    {
        echo "== $name: exit $code, $((SECONDS - begin)) s"
        grep -E '^(FAILED|ERROR|SKIPPED|E  )|FAIL' "$out/$name.log" | cut -c1-220 | head -25
        tail -n 3 "$out/$name.log" | cut -c1-300
    } >"$out/$name.end"
    return "$code"
}

suite() { # NAME FILE : the tests of a file that need a GPU; none passed is no success
    step "$1" python3 -m pytest -m gpu "tests/serving/$2" -q -s -p no:cacheprovider --tb=short || return
    tail -n 1 "$out/$1.log" | grep -q ' passed' && return
    echo "== $1: no test ran" >>"$out/$1.end"
    return 5
}

one() { # WORD[@GPUS]
    if [[ $1 == *@* ]]; then
        export CUDA_VISIBLE_DEVICES=${1#*@}
        set -- "${1%@*}"
    fi
    case $1 in
    check) step check python3 -m tests.serving.support.stage check ;;
    verify) step verify python3 -m tool verify "$home/fork" ;;
    kit) suite kit test_kit.py ;;
    fusion) suite fusion test_fusion.py ;;
    serve | hicache | speculation | deepseek | parallel) suite "$1" "test_$1.py" ;;
    flash) LIMIT=$((2 * LIMIT)) suite flash test_flash.py ;;
    soak)
        LIMIT=$((SOAK + LIMIT)) step soak python3 -m tests.serving.support.soak "$out/.model" \
            --flavour "${SOAK_FLAVOUR:-fork-sm89}" --seconds "$SOAK" --out "$out/soak.json"
        ;;
    drafts) step drafts python3 -m bench.serving.drafts --json "$out/drafts.json" ;;
    bench*)
        step "$1" python3 -m bench.serving.steps --heads "${1#bench}" --json "$out/serve-${1#bench}.json"
        ;;
    esac
}

for words in $steps; do
    for word in ${words//+/ }; do
        case ${word%@*} in
        check | verify | kit | fusion | serve | hicache | speculation | deepseek | flash | parallel | soak | bench8 | bench64 | drafts) ;;
        *) echo "unknown step $word; the first lines of tests/serving/run.sh list them" >&2 && exit 2 ;;
        esac
    done
done
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for words in $steps; do
    declare -A jobs=()
    for word in ${words//+/ }; do
        one "$word" &
        jobs[$word]=$!
    done
    for word in ${words//+/ }; do
        wait "${jobs[$word]}" || worst=$?
        cat "$out/${word%@*}.end" && rm "$out/${word%@*}.end"
    done
done
rm -rf "$out/.model"
exit "$worst"
