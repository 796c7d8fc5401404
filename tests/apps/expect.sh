# shellcheck shell=sh
# Sourced by the scripts of this folder. POSIX sh.
#   expect CODE PATTERN command...   runs the command; its exit code must be CODE and its output (both streams) must
#                                    have a line that matches the extended regular expression PATTERN
#   refuse PATTERN                   no line of the last output matches PATTERN
set -u
failures=0
work=$(mktemp -d "${TMPDIR:-/tmp}/sparseattn_apps.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
OMPI_ALLOW_RUN_AS_ROOT=1
OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM

fail() {
    failures=$((failures + 1))
    echo "FAILED: $1"
    sed 's/^/    | /' "$work/output"
}

expect() {
    expected_code=$1
    expected_pattern=$2
    shift 2
    "$@" >"$work/output" 2>&1
    code=$?
    if [ "$code" -ne "$expected_code" ]; then
        fail "exit code $code instead of $expected_code: $*"
    elif ! grep -Eq -e "$expected_pattern" "$work/output"; then
        fail "no line matches '$expected_pattern': $*"
    fi
}

refuse() {
    if grep -Eq -e "$1" "$work/output"; then fail "a line matches '$1'"; fi
}

finish() {
    if [ "$failures" -ne 0 ]; then
        echo "$failures checks failed"
        exit 1
    fi
    echo "all checks passed"
}

# make_texts DIR: a folder of 40 small documents.
make_texts() {
    mkdir "$1"
    i=0
    while [ $i -lt 40 ]; do
        j=0
        while [ $j -lt 8 ]; do
            echo "line $j of document $i says that $((i * j)) is the product"
            j=$((j + 1))
        done >"$1/$i.txt"
        i=$((i + 1))
    done
}
