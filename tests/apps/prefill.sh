#!/bin/sh
# The prefill program from text to table and back through a file of tensors. Arguments: the folder of this script, the
# folder of the programs, mpirun with its flags.
here=$1
bin=$2
shift 2
# shellcheck source=tests/apps/expect.sh
. "$here/expect.sh"
mpirun="$*"
prefill=$bin/sparseattn-prefill
cd "$work" || exit 1

make_texts text
expect 0 "documents" "$bin/sparseattn-convert" text -o set.h5 --validation 0.2 text
cat >deck.toml <<'END'
[run]
dir = "run"
evaluation_packs = 0
[model]
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 32
intermediate_size = 96
[data]
path = "set.h5"
sequence_length = 128
[train]
mode = "dense"
max_steps = 1
batch_size = 1
END
expect 0 "^step=1 loss=" "$bin/sparseattn-train" -i deck.toml

expect 0 "^forward pass of 600 tokens  *[0-9.]* [KM]iB$" "$prefill" -n -l 300,600 run
expect 0 "^total  *[0-9.]* [KM]iB$" "$prefill" --dry-run run -l 600
refuse "speed-up"
expect 0 "^method  *density  *mass kept  *error  *worst layer  *loss  *last token  *tokens  *selection ms  *attention ms  *speed-up$" \
    "$prefill" -l 300 --repeats 1 run --json r.json --capture qkv.h5 --capture-layers 1 --pictures pictures
for method in full streaming xattention flexprefill minference; do
    grep -Eq "^$method +[01]\.[0-9]{4} " "$work/output" || fail "the table has no row $method"
    [ -s "pictures/300_tokens_layer_0001_$method.svg" ] || fail "no picture of $method"
done
grep -Eq '^full +1\.0000 +1\.0000 +0 +0 +[0-9.]+ +1\.00 +1\.000 ' "$work/output" || fail "full attention differs from itself"
grep -q '"token_agreement"' r.json || fail "r.json has no figures"
expect 0 "^streaming:local=8  *0\.[0-9]" "$prefill" -l 300 --repeats 1 -m streaming:local=8,sink=0 -m streaming:local=8 run --text text/1.txt --text text/2.txt

expect 0 "^out, lse and layouts written to qkv.h5$" "$prefill" -m xattention:block=64 -o qkv.h5 --repeats 1 qkv.h5
grep -Eq "^qkv.h5: 1 layer, 1 sequence, 300 queries, 300 keys, 4 query and 2 key heads of dimension 32, causal; precision fp32$" "$work/output" ||
    fail "the file is not described"
expect 0 "^query, key, value and output of a layer  *[0-9.]* [KM]iB$" "$prefill" -n qkv.h5

# In bf16: the figures of full attention against itself stay exact, those of others finite.
expect 0 "precision bf16$" "$prefill" -l 300 --repeats 1 -m streaming:local=8 --precision bf16 run --json rounded.json
grep -Eq '^full +1\.0000 +1\.0000 +0 +0 +[0-9.]+ +1\.00 +1\.000 ' "$work/output" || fail "full attention differs from itself in bf16"
grep -q '"precision": "bf16"' rounded.json || fail "rounded.json does not say its precision"
expect 0 "causal; precision bf16$" "$prefill" --precision bf16 -m xattention:block=64 --repeats 1 qkv.h5
expect 2 "--precision" "$prefill" --precision fp16 run

expect 2 "input is required" "$prefill"
expect 2 "unknown option --lenght; did you mean --length\?" "$prefill" --lenght 8 run
expect 2 "^sparseattn-prefill: command line: --method xattention:stride=7: xattention.stride is 7" "$prefill" -m xattention:stride=7 run
expect 2 "--length is 1000000, must be at most [0-9]+: the validation split of set.h5 has [0-9]+ tokens" "$prefill" -l 1000000 run
expect 2 "--repeats" "$prefill" --repeats 0 run
expect 2 "--length is given, must come with a checkpoint; qkv.h5 is not" "$prefill" -l 8 qkv.h5
expect 3 "^sparseattn-prefill: nowhere does not exist" "$prefill" nowhere
expect 3 "deck.toml" "$prefill" deck.toml
expect 3 "^sparseattn-prefill: missing/r.json cannot be written: there is no folder missing$" "$prefill" --json missing/r.json qkv.h5
refuse "density"
# shellcheck disable=SC2086
expect 2 "^sparseattn-prefill: command line: started as 2 processes, must be one$" $mpirun -n 2 "$prefill" -l 300 run
[ "$(grep -c 'must be one' "$work/output")" -eq 1 ] || fail "the refusal of two processes is printed more than once"
# shellcheck disable=SC2086
expect 0 "^streaming " $mpirun -n 1 "$prefill" -m streaming --repeats 1 -l 300 run
refuse "terminate called"
finish
