#!/usr/bin/env bash
# First contact with a card: all checks and measurements, in stages, the most important first.
#
#     run.sh [--from STAGE] [--minutes M] [--limit S] [--results DIR] [--short]
#
# Needs a GPU, its driver, bash and the usual small tools; Python only for the comparison with PyTorch. The script lies
# in the folder that `tests/gpu.sh --pack` makes, and reads nothing outside it. Each stage has a time limit; its output,
# and a line of JSON about it, are in the results folder as soon as it ends. --minutes ends the run in time, with the
# table; --from resumes later at the given stage; --limit gives no stage more than S seconds. --short runs every stage
# with as little work as possible, for machines without a GPU.
#
# ARCFACE_CU_PYTHON, COMPUTE_SANITIZER and NCU name tools that the script does not find by itself.
set -uo pipefail

# Each stage and its limit in seconds.
stages=(
    info:60
    conformance:120
    operations:420
    training:420
    twice:150
    resume:150
    kernels:240
    train_step:420
    head:240
    torch:420
    sanitizer:900
    ncu:300
)
networks=(resnet50 mobilenet-v2 iresnet50 iresnet100 insightface-mbf)
# The exit code of a stage that is skipped; its last line says why.
skipped=77

die() { printf 'run.sh: %s\n' "$*" >&2; exit 2; }

from=info minutes=60 most=3600 short=0 only='' results=''
while (($#)); do
    case $1 in
    --from | --minutes | --limit | --results | --stage)
        (($# > 1)) || die "$1 needs a value"
        case $1 in
        --from) from=$2 ;;
        --minutes) minutes=$2 ;;
        --limit) most=$2 ;;
        --results) results=$2 ;;
        --stage) only=$2 ;;
        esac
        shift 2
        ;;
    --short) short=1; shift ;;
    *) die "$1 is not known: run.sh [--from STAGE] [--minutes M] [--limit S] [--results DIR] [--short]" ;;
    esac
done
[[ $minutes =~ ^(0|[1-9][0-9]*)$ ]] || die "--minutes $minutes: expected a whole number"
[[ $most =~ ^[1-9][0-9]*$ ]] || die "--limit $most: expected a whole number of seconds"
[[ " ${stages[*]}" == *" $from:"* ]] || die "--from $from: the stages are ${stages[*]%%:*}"

kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
results=${results:-$kit/results}
mkdir -p "$results/work" || die "the results cannot be written"
results=$(cd "$results" && pwd) || exit 1
cd "$kit" || exit 1
export ARCFACE_CU_REQUIRE_GPU=1 ARCFACE_CU_CACHE=${ARCFACE_CU_CACHE:-$results/work/cache}

# --- The stages. Each runs in a process of its own; what it prints is its text.

skip() { printf 'SKIPPED: %s\n' "$*"; exit "$skipped"; }

# A field of a line of JSON, as our benches write it.
field() {
    [[ $1 =~ \"$2\":(\"([^\"]*)\"|([-0-9.eE+]+)) ]] || return 1
    printf '%s\n' "${BASH_REMATCH[2]:-${BASH_REMATCH[3]}}"
}

# Within a stage: runs a command with its own limit. It stays in the stage's process group, which ends with the stage.
limited() {
    local seconds=$1
    shift
    timeout --foreground --kill-after=5 "$seconds" "$@"
}

# The GPU tests whose names begin with one of these words; in the short form, one per file.
gpu_tests() {
    local name file last='' pattern
    pattern="^($(IFS='|'; echo "$*"))[a-z_0-9]*::(.*_)?on_gpu(::|$)"
    # In reverse order: the first conv test has every shape and takes the longest.
    ./device --list --format terse 2>/dev/null | sort -r | while IFS= read -r name; do
        name=${name%: test}
        [[ $name =~ $pattern ]] || continue
        file=${name%%::*}
        if ((short)) && [[ $file == "$last" ]]; then continue; fi
        last=$file
        printf '%s\n' "$name"
    done
}

# Runs one test in its own process, so that a fault ends only that process. Prints one line and, for a failure, the end
# of the output.
one_test() {
    local name=$1 seconds=$2 log=$results/work/${1//::/.}.log code began=$SECONDS
    limited "$seconds" ./device --exact "$name" --nocapture >"$log" 2>&1
    code=$?
    if ((code == 124 || code == 137)); then
        printf 'FAILED  %s: not done after %d s\n%s\n' "$name" "$seconds" "$(tail -n 20 "$log")"
    elif ((code != 0)); then
        printf 'FAILED  %s (exit code %d)\n%s\n' "$name" "$code" "$(tail -n 40 "$log")"
    # A name that matches nothing, or a test that skips itself, does not count as passed.
    elif ! grep -q 'test result: ok. 1 passed' "$log" || grep -q 'SKIPPED ' "$log"; then
        printf 'FAILED  %s did not run\n%s\n' "$name" "$(tail -n 20 "$log")"
    else
        printf 'passed  %s (%d s)\n' "$name" $((SECONDS - began))
        touch "$log.passed"
    fi
}

# Runs tests, several at once; fails if there are none.
all_tests() {
    local jobs=$1 seconds=$2 name failed=0
    shift 2
    (($#)) || { echo 'no tests were found: ./device --list'; return 1; }
    rm -f "$results"/work/*.log.passed
    for name in "$@"; do
        while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
        one_test "$name" "$seconds" &
    done
    wait
    for name in "$@"; do
        [[ -f $results/work/${name//::/.}.log.passed ]] || failed=$((failed + 1))
    done
    printf '%d tests, %d failed\n' "$#" "$failed"
    return $((failed != 0))
}

stage_info() {
    cat parcel.txt 2>/dev/null
    nvidia-smi 2>/dev/null || echo 'nvidia-smi is not here'
    nproc
    ./arcface-cu info | tee "$results/work/info.txt" || return 1
    grep -q -- '--device auto takes cuda:0' "$results/work/info.txt" ||
        { echo 'no GPU can be used: the lines above say why'; return 1; }
}

stage_conformance() {
    local tests
    mapfile -t tests < <(gpu_tests conformance)
    all_tests 1 110 "${tests[@]}"
}

stage_operations() {
    local tests jobs
    mapfile -t tests < <(gpu_tests ops_; ((short)) || gpu_tests golden gradients fold)
    jobs=$(($(nproc) / 2))
    ((jobs < 1)) && jobs=1
    ((jobs > 6)) && jobs=6
    all_tests "$jobs" 200 "${tests[@]}"
}

stage_training() {
    local tests=(training::on_gpu::demo)
    ((short)) || mapfile -t tests < <(gpu_tests training)
    all_tests 1 200 "${tests[@]}"
}

# Sets `command` to a training run in results/work/NAME.
train() {
    local name=$1 recipe=(--preset small --data generated:40x10 --batch-size 16 --steps 200 --checkpoint-every 20)
    shift
    ((short)) && recipe=(--preset demo --data generated:8x4 --batch-size 4 --steps 3 --checkpoint-every 1)
    command=(./arcface-cu train --device cuda "${recipe[@]}" --out "$results/work/$name" "$@")
}

stage_twice() {
    local name
    for name in first second; do
        rm -rf "${results:?}/work/$name"
        train "$name"
        "${command[@]}" || return 1
    done
    cmp "$results"/work/{first,second}/weights.safetensors || return 1
    echo 'two runs: the same bits'
}

stage_resume() {
    local killed=$results/work/killed run
    # The unbroken run is made again: one that is there may be of another parcel.
    rm -rf "$killed" "$results/work/first"
    train first
    "${command[@]}" || return 1
    train killed
    "${command[@]}" &
    run=$!
    # A checkpoint is complete once its name exists.
    until compgen -G "$killed/checkpoints/*.safetensors" >/dev/null; do
        kill -0 "$run" 2>/dev/null || { echo 'the run ended before its first checkpoint'; return 1; }
        sleep 0.02
    done
    kill -9 "$run" 2>/dev/null
    wait "$run" 2>/dev/null
    [[ ! -f $killed/weights.safetensors ]] || { echo 'the run ended before it could be killed'; return 1; }
    echo 'killed after its first checkpoint'
    train killed --resume
    "${command[@]}" || return 1
    cmp "$results"/work/{first,killed}/weights.safetensors || return 1
    echo 'killed and resumed: the same bits as an uninterrupted run'
}

stage_kernels() {
    local batch failed=0
    if ((short)); then
        ./bench kernels --device cuda --json "$results/kernels-1.jsonl" --batch 2 'conv_fprop mbv2' input_transform sgd_update
        return
    fi
    # Full batches first; then the batch for which the parcel has modelled times.
    ./bench kernels --device cuda --json "$results/kernels-1.jsonl" --batch 128 || failed=1
    if [[ -s modelled.jsonl ]]; then
        batch=$(field "$(head -n 1 modelled.jsonl)" batch)
        ./bench kernels --device cuda --json "$results/kernels-2.jsonl" --batch "$batch" --modelled modelled.jsonl || failed=1
    fi
    return "$failed"
}

stage_train_step() {
    local failed=0
    if ((short)); then
        ./bench train_step --device cuda --json "$results/train_step-1.jsonl" --batch 2 --steps 1 mobilefacenet-tiny
        return
    fi
    ./bench train_step --device cuda --json "$results/train_step-1.jsonl" --train --batch 512 "${networks[@]}" || failed=1
    ./bench train_step --device cuda --json "$results/train_step-2.jsonl" --train --batch 128 "${networks[@]}" || failed=1
    ./bench train_step --device cuda --json "$results/train_step-3.jsonl" --infer --batch 512 "${networks[@]}" || failed=1
    return "$failed"
}

stage_head() {
    local options=(--size '512,512,85742' --size '512,512,1000000' --rounds 6)
    ((short)) && options=(--size '64,128,2000' --rounds 1)
    ./bench head --device cuda --json "$results/head.jsonl" "${options[@]}"
}

# Prints the first Python whose PyTorch sees a GPU; if there is none, prints what was tried and fails.
find_python() {
    local python tried=()
    for python in ${ARCFACE_CU_PYTHON:+"$ARCFACE_CU_PYTHON"} python3 ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python3"} \
        ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python3"} "${HOME:-/root}"/{venv,.venv,miniconda3,miniforge3}/bin/python3 \
        /opt/*/bin/python3 /opt/*/{venv,.venv}/bin/python3; do
        command -v "$python" >/dev/null || continue
        if limited 60 "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
            printf '%s\n' "$python"
            return
        fi
        tried+=("$python")
    done
    printf 'no Python with a PyTorch that sees a GPU (tried: %s); set ARCFACE_CU_PYTHON to name one\n' "${tried[*]:-none}"
    return 1
}

stage_torch() {
    local python
    python=$(find_python) || skip "$python"
    "$python" pytorch.py --device cuda --json "$results/torch.jsonl" "${networks[@]}"
}

# Finds a CUDA tool: named by a variable, on the path, or in a toolkit.
find_tool() {
    local name=$1 named=$2 path
    for path in ${named:+"$named"} "$name" ${CUDA_PATH:+"$CUDA_PATH/bin/$name"} /usr/local/cuda/bin/"$name" \
        /usr/local/cuda-*/bin/"$name" /opt/nvidia/nsight-compute/*/"$name"; do
        if command -v "$path" >/dev/null; then printf '%s\n' "$path"; return; fi
    done
    return 1
}

stage_sanitizer() {
    local options file passed failed=0 sanitizer checks=(
        'memcheck'
        'racecheck'
        'initcheck'
        'synccheck'
        # Without the pool each allocation ends at its own last byte; the padding after it catches what goes beyond.
        'memcheck --padding 1024'
    )
    sanitizer=$(find_tool compute-sanitizer "${COMPUTE_SANITIZER:-}") ||
        skip 'compute-sanitizer is not here: memcheck, racecheck, initcheck and synccheck were NOT run'
    local files=(ops_augment ops_sgd ops_elementwise ops_head ops_depthwise ops_conv)
    for options in "${checks[@]}"; do
        for file in "${files[@]}"; do
            # What passed with this parcel is not run again: the stage may take more than one session on a card.
            passed=$results/work/sanitizer.${options// /}.$file.passed
            if [[ $passed -nt ./device ]]; then
                printf 'passed  %s %s, earlier\n' "$options" "$file"
                continue
            fi
            printf '== %s, %s\n' "$options" "$file"
            # shellcheck disable=SC2086
            ARCFACE_CU_POOL=$([[ $options == *padding* ]] && echo 0 || echo 1) \
                limited 240 "$sanitizer" --tool $options --error-exitcode 9 --print-limit 20 \
                ./device "$file::on_gpu" --test-threads 1 >"$results/work/sanitizer.log" 2>&1
            local code=$?
            # Passed: the tests ran, and the tool reports no errors.
            if ((code == 0)) && grep -q 'test result: ok\. [1-9]' "$results/work/sanitizer.log" &&
                grep -q 'SUMMARY: 0 \(errors\|hazards\)' "$results/work/sanitizer.log"; then
                printf 'passed  %s %s\n' "$options" "$file"
                touch "$passed"
            else
                printf 'FAILED  %s %s (exit code %d)\n' "$options" "$file" "$code"
                tail -n 60 "$results/work/sanitizer.log"
                failed=1
            fi
        done
    done
    return "$failed"
}

stage_ncu() {
    local ncu line operation seen=' ' count=0 failed=0
    ncu=$(find_tool ncu "${NCU:-}") || skip 'ncu is not here: no hardware counters were read'
    [[ -s $results/kernels-1.jsonl ]] || skip 'the stage kernels has measured nothing: which kernels cost most is not known'
    while IFS=$'\t' read -r _ operation; do
        # One operation of each kind.
        [[ $seen == *" ${operation%% *} "* ]] && continue
        seen+="${operation%% *} "
        printf '\n== %s\n' "$operation"
        # The tool's exit code says nothing: it kills the bench. What it profiled, it says.
        limited 100 "$ncu" --clock-control none --set full --launch-count 4 --kill yes \
            ./bench kernels --device cuda "$operation" </dev/null 2>&1 | tee "$results/work/ncu.log"
        if grep -q ERR_NVGPUCTRPERM "$results/work/ncu.log"; then
            skip 'this user may not read the hardware counters (ERR_NVGPUCTRPERM): run it as root'
        fi
        grep -q '==PROF== Profiling' "$results/work/ncu.log" || failed=1
        count=$((count + 1))
        ((count == 5)) && break
    done < <(while IFS= read -r line; do
        printf '%s\t%s\n' "$(field "$line" measured_us)" "$(field "$line" operation)"
    done <"$results/kernels-1.jsonl" | sort -rg)
    return "$failed"
}

if [[ -n $only ]]; then
    "stage_$only"
    exit
fi

# --- The run.

# Converts a number to thousandths, from up to three digits after its point.
thousandths() {
    local whole=${1%%.*} part=000
    [[ $1 == *.* ]] && part=${1#*.}000
    [[ $whole =~ ^[0-9]+$ && $part =~ ^[0-9]+$ ]] || return 1
    printf '%d\n' "$((10#$whole * 1000 + 10#${part:0:3}))"
}

# A row: name, what was expected, what was measured, and their ratio.
row() {
    local expected measured ratio=-
    if expected=$(thousandths "$2") && measured=$(thousandths "$3") && ((expected > 0)); then
        ratio=$((measured * 100 / expected))
        ratio=$((ratio / 100)).$(printf '%02d' $((ratio % 100)))
    fi
    printf '%-56s %14s %14s %8s\n' "$1" "$(short "$2")" "$(short "$3")" "$ratio"
}

# A number with one digit after its point; a dash where there is none.
short() {
    local part=${1#*.}
    [[ $1 == *.* ]] && printf '%s.%s\n' "${1%%.*}" "${part:0:1}" || printf '%s\n' "${1:--}"
}

# PyTorch's most images per second for a network, batch and kind of work, in any mode.
rival() {
    local line rate best=0 text=''
    [[ -f $results/torch.jsonl ]] || return 0
    while IFS= read -r line; do
        [[ $(field "$line" network) == "$1" && $(field "$line" batch) == "$2" && $(field "$line" what) == "$3" ]] || continue
        rate=$(thousandths "$(field "$line" images_per_second)") || continue
        if ((rate > best)); then best=$rate text=$(field "$line" images_per_second); fi
    done <"$results/torch.jsonl"
    printf '%s\n' "$text"
}

table() {
    local line name stage
    printf '\n%-12s %-10s %8s  %s\n' stage status seconds why
    for stage in "${stages[@]%%:*}"; do
        [[ -f $results/$stage.json ]] || continue
        line=$(<"$results/$stage.json")
        printf '%-12s %-10s %8s  %s\n' "$stage" "$(field "$line" status)" "$(field "$line" seconds)" "$(field "$line" why)"
    done
    printf '\n%-52s %14s %14s %8s\n' 'operation, us' modelled measured ratio
    cat "$results"/kernels-*.jsonl 2>/dev/null | while IFS= read -r line; do
        name="$(field "$line" operation), batch $(field "$line" batch)"
        row "$name" "$(field "$line" modelled_us)" "$(field "$line" measured_us)"
    done
    printf '\n%-52s %14s %14s %8s\n' 'network, img/s' PyTorch measured ratio
    cat "$results"/train_step-*.jsonl 2>/dev/null | while IFS= read -r line; do
        name="$(field "$line" network), $(field "$line" what), batch $(field "$line" batch)"
        row "$name" "$(rival "$(field "$line" network)" "$(field "$line" batch)" "$(field "$line" what)")" \
            "$(field "$line" images_per_second)"
    done
    printf '\n%-52s %14s %14s %8s\n' 'head, us' 'bare products' measured ratio
    cat "$results"/head.jsonl 2>/dev/null | while IFS= read -r line; do
        name="$(field "$line" what), $(field "$line" n) x $(field "$line" d) x $(field "$line" classes)"
        row "$name" "$(micro "$(field "$line" bare_milliseconds)")" "$(micro "$(field "$line" milliseconds)")"
    done
    printf '\nModelled: from the counts of an emulator, %s\n' \
        "$(field "$(head -n 1 modelled.jsonl 2>/dev/null)" card || echo 'and not in this parcel')"
}

# Milliseconds as microseconds.
micro() {
    local number
    number=$(thousandths "$1") && printf '%s\n' "$number"
}

# Text inside a string of JSON.
quoted() {
    local text=${1//\\/\\\\}
    text=${text//\"/\'}
    printf '%s' "${text//[[:cntrl:]]/ }"
}

current=''
finish() {
    trap - INT TERM
    if [[ -n $current ]]; then
        kill -TERM "$current" 2>/dev/null
        wait "$current" 2>/dev/null
        kill -KILL -- "-$current" 2>/dev/null
    fi
    table 2>/dev/null | tee "$results/table.txt"
    printf '\nresults are in %s\n' "$results"
    exit "$1"
}
trap 'echo; echo interrupted; finish 1' INT TERM

deadline=$((SECONDS + minutes * 60))
begun=0 whole=1
for entry in "${stages[@]}"; do
    stage=${entry%%:*} limit=${entry##*:}
    [[ $stage == "$from" ]] && begun=1
    ((begun)) || continue
    left=$((deadline - SECONDS))
    text=$results/$stage.txt status=passed why='' began=$SECONDS
    if ((left < 5)); then
        status='not run' why="the $minutes minutes are used up; go on with --from $stage"
        echo "$why" >"$text"
        whole=0
    else
        ((limit > most)) && limit=$most
        ((limit > left)) && limit=$left
        printf '\n== %s (at most %d s)\n' "$stage" "$limit"
        # The output goes to the file first, so nothing is lost if only part of it is shown.
        options=(--results "$results" --stage "$stage")
        ((short)) && options+=(--short)
        timeout --kill-after=10 "$limit" bash "$kit/run.sh" "${options[@]}" >"$text" 2>&1 &
        current=$!
        wait $current
        code=$?
        # The stage's shell is gone, but processes that it started may remain. All have timeout's process group.
        kill -KILL -- "-$current" 2>/dev/null
        current=''
        tail -n 25 "$text"
        case $code in
        0) ;;
        "$skipped") status=skipped why=$(tail -n 1 "$text") why=${why#SKIPPED: } ;;
        124 | 137) status='timed out' why="not done after $limit s" whole=0 ;;
        *) status=failed why="exit code $code: $(tail -n 1 "$text")" whole=0 ;;
        esac
    fi
    printf '{"stage":"%s","status":"%s","seconds":%d,"why":"%s"}\n' \
        "$stage" "$status" $((SECONDS - began)) "$(quoted "$why")" >"$results/$stage.json"
    printf '%s: %s%s\n' "$stage" "$status" "${why:+, $why}"
done
finish $((!whole))
