#!/bin/sh
# Tables searched on attention tensors of known heads, then used. Arguments: the folder of this script, the folder of the
# programs, a Python with h5py, mpirun and its flags.
here=$1
bin=$2
python=$3
mpiexec=$4
shift 4
# shellcheck source=tests/apps/expect.sh
. "$here/expect.sh"
search=$bin/sparseattn-search-heads
cd "$work" || exit 1

make() {
    "$python" "$here/make_attention.py" "$@" || exit 1
}
make a.h5 3000 1 0,2
make b.h5 2200 2 0,2
make short.h5 300 3
make open.h5 600 4 0 0

minference="-m minference --candidate stream_llm:16,600 --candidate vertical_and_slash:100,750"
# shellcheck disable=SC2086
{
    expect 0 "0 +0\.[0-9]+ +0\.[0-9]+ +1 stream_llm, 1 vertical_and_slash" "$search" $minference -o table.json --report report.json a.h5 b.h5
    expect 0 "." "$mpiexec" -n 2 "$@" "$search" $minference -o again.json a.h5 b.h5
}
tr -d ' \n' <table.json >"$work/output"
grep -q '"0":\["stream_llm",16,600,' "$work/output" || fail "head 0 is not stream_llm"
grep -q '"1":\["vertical_and_slash",' "$work/output" || fail "head 1 is not vertical_and_slash"
grep -q '},{},{' "$work/output" || fail "the layer that was not searched is not empty"
cmp -s table.json again.json || fail "two ranks find another table than one"
grep -q '"within_budget": true' report.json || fail "the report has no candidates"
expect 0 "minference" "$bin/sparseattn-prefill" -m minference:table=table.json --repeats 1 a.h5

expect 0 "2 +0\.0[0-9]+ .*thresholds" "$search" -m xattention:block=64 --max-error 0.1 --model-layers 4 -o thresholds.tsv a.h5
[ "$(grep -vc '^#' thresholds.tsv)" -eq 4 ] || fail "the table has not one line for each layer of the model"
expect 0 "xattention" "$bin/sparseattn-prefill" -m xattention:block=64,thresholds=thresholds.tsv --repeats 1 a.h5
expect 0 "thresholds" "$search" -m xattention --density 0.5 -o open.tsv open.h5
expect 0 "keeps all pairs: the samples are too short" "$search" -m minference -o x.json short.h5

rm -f x.json
expect 0 "samples of a layer" "$search" -m minference -n a.h5
expect 2 "samples is required" "$search" -m minference -o x.json
expect 2 "--method is required" "$search" -o x.json a.h5
expect 2 "--method is full, must be minference or xattention" "$search" -m full -o x.json a.h5
expect 2 "xattention.stride is 7" "$search" -m xattention:stride=7 --density 0.1 -o x.json a.h5
expect 2 "either --max-error or --density" "$search" -m xattention -o x.json a.h5
expect 2 "either --max-error or --density" "$search" -m xattention --density 0.1 --max-error 0.1 -o x.json a.h5
expect 2 "density is 2, must be above 0, at most 1" "$search" -m minference --density 2 -o x.json a.h5
expect 2 "--density" "$search" -m minference --density x -o x.json a.h5
expect 2 "--max-error is given, must come with --method xattention" "$search" -m minference --max-error 0.1 -o x.json a.h5
expect 2 "--as-given is given, must come with --method minference" "$search" -m xattention --density 0.1 --as-given -o x.json a.h5
expect 2 "--candidate stream:1,2: pattern is 'stream:1,2'" "$search" -m minference --candidate stream:1,2 -o x.json a.h5
expect 2 "--output is required" "$search" -m minference a.h5
expect 2 "--model-layers is 2, must be above the last layer searched, 2" "$search" -m minference --model-layers 2 -o x.json a.h5
expect 2 "unknown option --densty; did you mean --density" "$search" -m minference --densty 0.1 -o x.json a.h5
expect 3 "nowhere.h5" "$search" -m minference -o x.json nowhere.h5
expect 3 "make_attention.py" "$search" -m minference -o x.json "$here/make_attention.py"
expect 3 "short.h5: has no layer 2, must be one of 0" "$search" -m minference -o x.json a.h5 short.h5
expect 3 "a.h5: has no layer 5, must be one of 0, 2" "$search" -m minference --layers 5 -o x.json a.h5
expect 3 "open.h5: /@causal is 0, must be 1" "$search" -m minference --layers 0 -o x.json a.h5 open.h5
expect 3 "there is no folder missing" "$search" -m minference -o missing/x.json a.h5
[ ! -e x.json ] || fail "a failed search left x.json behind"
finish
