#!/bin/sh
# A training job loses a rank: killed, stopped, without memory, failing in the middle. It ends within 30 s, not with
# success, and says which rank and why. Arguments: the folder of this script, the folder of the programs, mpirun with
# its flags.
here=$1
bin=$2
shift 2
# shellcheck source=tests/apps/expect.sh
. "$here/expect.sh"
mpirun="$*"
train=$bin/sparseattn-train
cd "$work" || exit 1

make_texts text
expect 0 "documents" "$bin/sparseattn-convert" text -o set.h5 --validation 0.2 text
cat >deck.toml <<'END_OF_DECK'
[run]
log_interval = 1
evaluation_packs = 0
checkpoint_interval = 0
patience = 4
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
max_steps = 1000000
batch_size = 4
END_OF_DECK

# start FOLDER overrides...: three ranks, of which the last leaves its process number in `pid`.
start() {
    folder=$1
    shift
    rm -f pid
    # $mpirun is a command with its flags: split on purpose. Backgrounded: $! is mpirun itself.
    # shellcheck disable=SC2086,SC2016
    $mpirun -n 2 "$train" -i deck.toml -d "$folder" "$@" : \
        -n 1 sh -c 'echo $$ >pid.new && mv pid.new pid && exec "$0" "$@"' "$train" -i deck.toml -d "$folder" "$@" \
        >output 2>&1 &
    job=$!
}

wait_for_step() {
    tries=0
    until grep -q "^step=3 " output || [ $tries -ge 300 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
}

# finished PATTERN: the job ends in time, unsuccessfully, with a line that matches.
finished() {
    begin=$(date +%s)
    (sleep 40; kill -KILL "$job") 2>/dev/null &
    guard=$!
    wait "$job" 2>/dev/null
    code=$?
    kill "$guard" 2>/dev/null
    took=$(($(date +%s) - begin))
    sed -i "/^step=/d" output
    [ "$code" -ne 0 ] && [ "$code" -ne 75 ] || fail "the job ended with code $code"
    [ "$took" -lt 30 ] || fail "the job took $took s to end"
    grep -Eq -e "$1" output || fail "no line matches '$1'"
}

# Killed, as the kernel does when memory runs out: the launcher says who.
start killed
wait_for_step
kill -KILL "$(cat pid)"
finished "rank 2 .*(signal 9|Killed)"

# Stopped: the others miss it, in an exchange or at a collective.
for groups in 1 3; do
    start "late$groups" parallel.seq_parallel_size=$groups
    wait_for_step
    kill -STOP "$(cat pid)"
    finished "^sparseattn-train: rank [01] of 3: ranks? .*2 did not come to .* within [0-9]+ s$"
done

# Out of memory on one rank: its limit is below what the model takes. CUDA's
# libraries alone take more address space than that limit, and device memory has none of its own for one process.
if ! "$train" --config | grep -q "default space Cuda"; then
    # Patient: on a busy machine the other rank takes longer to fill its larger model.
    large="run.patience=60 model.hidden_size=1024 model.intermediate_size=8192 train.batch_size=2"
    # shellcheck disable=SC2016,SC2086
    {
        $mpirun -n 1 "$train" -i deck.toml -d memory $large : \
            -n 1 sh -c 'ulimit -v 700000 && exec "$0" "$@"' "$train" -i deck.toml -d memory $large >output 2>&1 &
        job=$!
    }
    finished "^sparseattn-train: rank 1( of 2)?: .*(out of memory|failed to allocate memory)"
fi

# A disk that fills: the checkpoint cannot be written on one rank.
# shellcheck disable=SC2016,SC2086
{
    $mpirun -n 1 "$train" -i deck.toml -d disk train.max_steps=2 : \
        -n 1 sh -c 'ulimit -f 4 && trap "" XFSZ && exec "$0" "$@"' "$train" -i deck.toml -d disk train.max_steps=2 \
        >output 2>&1 &
    job=$!
}
finished "^sparseattn-train: rank 1: .*shard_00001"
finish
