#!/bin/sh
# A tiny run from text to report, with dry run, restart, stop on request and refusals. Arguments: the folder of this
# script, the folder of the programs, mpirun with its flags.
here=$1
bin=$2
shift 2
# shellcheck source=tests/apps/expect.sh
. "$here/expect.sh"
mpirun="$*"
train=$bin/sparseattn-train
eval=$bin/sparseattn-eval
cd "$work" || exit 1

make_texts text
expect 0 "documents" "$bin/sparseattn-convert" text -o set.h5 --validation 0.2 text
cat >deck.toml <<'END'
[run]
dir = "run"
log_interval = 2
checkpoint_interval = 3
evaluation_packs = 2
evaluate_sparse = true
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
max_steps = 6
batch_size = 2
[sparsity]
sink = 4
local = 16
END

expect 0 "^hidden_size = 64$" "$train" -i deck.toml -n
grep -q "^vocab_size = 259$" "$work/output" || fail "the dry run does not show the data set's vocabulary"
grep -q "^total  *[0-9.]* [KMG]iB$" "$work/output" || fail "the dry run has no memory plan"
[ ! -e run ] || fail "the dry run made the run's folder"
# The printed deck is a deck.
sed -n '/^\[run\]/,/^gpu_aware/p' "$work/output" >merged.toml
expect 0 "^max_steps = 6$" "$train" -i merged.toml -n

# Passes in bf16, evaluated as they were trained and in fp32; a restart may change the precision, and says so.
expect 2 "train.precision is \"fp16\", must be one of \"fp32\", \"bf16\"" "$train" -i deck.toml -n 'train.precision="fp16"'
expect 0 "^parameters in bf16  *[1-9]" "$train" -i deck.toml -n train.precision=bf16
expect 0 "^step=6 loss=" "$train" -i deck.toml -d rounded train.precision=bf16
grep -q "precision bf16" rounded/log.txt || fail "the log does not say the precision"
expect 0 "precision bf16$" "$eval" --packs 2 rounded
expect 0 "precision fp32$" "$eval" --packs 2 --precision fp32 rounded
expect 0 "precision is fp32, was bf16 when the checkpoint was written" "$train" -d rounded -r latest train.max_steps=7 train.precision=fp32

# Closed gates that select; evaluated as they were trained, and with another branch.
expect 2 "sparsity.sparse_branch is 'full': method is full" "$train" -i deck.toml -n sparsity.sparse_branch=full
expect 0 "^step=4 loss=" "$train" -i deck.toml -d selecting train.max_steps=4 sparsity.sparse_branch=xattention:threshold=0.5
expect 0 "^all xattention:threshold=0.5 " "$eval" --packs 2 selecting
expect 0 "^all streaming " "$eval" --packs 2 --sparse-branch streaming --local 16 selecting
expect 2 "^sparseattn-eval: sink, local or granularity is given, must be left out with the sparse branch 'xattention:threshold=0.5'$" "$eval" --packs 2 --sink 4 selecting
expect 3 "sparsity.sparse_branch is \"streaming\" in this run, must be \"xattention:threshold=0.5\"" "$train" -i deck.toml -d selecting -r latest train.max_steps=6

# shellcheck disable=SC2086
{
    expect 0 "^step=6 loss=" $mpirun -n 2 "$train" -i deck.toml
    grep -q "^evaluation step=6 " "$work/output" || fail "no evaluation at the end"
    grep -q "^validation loss, as deployed  *[0-9]" "$work/output" || fail "no summary"
    for file in log.txt metrics.csv evaluation.csv report.html head_masks.tsv checkpoints/step_000000000006/COMMIT; do
        [ -s "run/$file" ] || fail "run/$file is missing"
    done
    expect 2 "train.batch_size is 1, must be at least 2, the number of sequence groups \(2 ranks, 1 in each\): each works on whole packs" $mpirun -n 2 "$train" -i deck.toml -d other train.batch_size=1
    shared="parallel.seq_parallel_size=2 train.max_steps=2 train.batch_size=1"
    expect 0 "^ranks 2 = data_parallel 1 x seq_parallel 2, tokens of the run" $mpirun -n 2 "$train" -i deck.toml -n $shared
    expect 0 "^rank 1: .*, data 0, sequence 1, cores " $mpirun -n 2 "$train" -i deck.toml -d shared $shared
    expect 2 "parallel.seq_parallel_size is 3, must be a divisor of the number of ranks, 2" $mpirun -n 2 "$train" -i deck.toml -d other parallel.seq_parallel_size=3
    expect 3 "holds a run already" $mpirun -n 2 "$train" -i deck.toml
    # The checkpoint in the middle leads to the same weights.
    mkdir -p again/checkpoints
    cp -r run/checkpoints/step_000000000003 again/checkpoints/
    expect 0 "^going on from step 3" $mpirun -n 2 "$train" -r latest -d again
}
"$bin/sparseattn-inspect" --json --statistics run >first.json 2>&1
"$bin/sparseattn-inspect" --json --statistics again >second.json 2>&1
grep -E '"(norm|min|max|name)"' first.json >first.txt
grep -E '"(norm|min|max|name)"' second.json >second.txt
[ -s first.txt ] || fail "inspect shows no statistics"
cmp -s first.txt second.txt || fail "the restarted run has other tensors"

expect 0 "^layer  *head 0  *head 1$" "$bin/sparseattn-inspect" --head-map run
expect 0 "^max_steps = 6$" "$bin/sparseattn-inspect" --deck run
expect 0 "gates as deployed" "$bin/sparseattn-eval" --packs 2 run
expect 0 '"deployed"' "$bin/sparseattn-eval" --packs 2 --json run
expect 2 "unknown option --pack; did you mean --packs\?" "$bin/sparseattn-eval" --pack 2 run

# Stopped on request, and gone on.
expect 75 "^time limit reached: stopping with a checkpoint$" "$train" -i deck.toml -d limited -t 0.001
expect 0 "^step=6 loss=" "$train" -r latest -d limited run.time_limit=0

# What does not fit.
expect 2 "deck.toml:[0-9]+:[0-9]+: model.num_attention_heads is 4, must be" "$train" -i deck.toml -d x model.num_key_value_heads=3
expect 2 "command line: model.vocab_size is 100, must be 259, as in data set set.h5, or 0" "$train" -i deck.toml -d x model.vocab_size=100
expect 2 "options.implementation is cuda, " "$train" -i deck.toml -d elsewhere attention.implementation=cuda
expect 2 "^sparseattn-eval: sequence length is 1, must be in \[2, 2\^30\]$" "$eval" --sequence-length 1 run
expect 2 "^sparseattn-eval: the validation split of set.h5 has [0-9]+ tokens, must have at least 1000001 for sequence length 1000000$" "$eval" --sequence-length 1000000 run
expect 2 "train.mode is \"weights_only\", must be another mode unless" "$train" -i deck.toml -d x train.mode=weights_only
expect 2 "data.sequence_length is 1000000, must be at most [0-9]+, one less than the tokens in the train split of set.h5" "$train" -i deck.toml -d x data.sequence_length=1000000
expect 3 "deck.toml" "$train" -i deck.toml -d x data.path=deck.toml
printf 'x' | dd of=run/checkpoints/step_000000000006/index.h5 bs=1 seek=3000 conv=notrunc 2>/dev/null
expect 3 "index.h5" "$bin/sparseattn-inspect" --verify run/checkpoints/step_000000000006
expect 3 "index.h5" "$train" -r run/checkpoints/step_000000000006 -d y
[ ! -e x ] || fail "a refused run left a folder behind"
finish
