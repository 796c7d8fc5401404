#!/bin/sh
# Command lines and decks of the real programs. Arguments: the folder of this script, the folder of the programs.
here=$1
bin=$2
# shellcheck source=tests/apps/expect.sh
. "$here/expect.sh"

for program in train eval convert inspect prefill search-heads; do
    app=$bin/sparseattn-$program
    expect 0 "^Usage: sparseattn-$program" "$app" --help
    for part in "Exit codes:" "Examples:" "--version" "--config"; do expect 0 "$part" "$app" -h; done
    expect 0 "^sparseattn-$program [0-9]+\.[0-9]+\.[0-9]+" "$app" --version
    expect 0 "^Kokkos: " "$app" --config
    for name in SparseAttn compiler flags threads attention "attention kernels" MPI HDF5 BLAS; do
        grep -q "^$name:" "$work/output" || fail "$program --config has no line $name"
    done
    expect 2 "^sparseattn-$program: command line: unknown option --versoin; did you mean --version\?$" "$app" --versoin x y
done

train=$bin/sparseattn-train
expect 2 "unknown option --dry_run; did you mean --dry-run\?" "$train" --dry_run
expect 2 "unknown option -q; --help lists the options" "$train" -q
expect 2 "--input" "$train" --input
expect 2 "^sparseattn-train: command line: --time-limit is 1:30, must be seconds \(above 0\) or HH:MM:SS$" "$train" -t 1:30
expect 0 "^\[sparsity\]$" "$train" --print-reference
expect 0 "^\| .max_steps. \| .1000. \| steps \|" "$train" --print-reference markdown
expect 2 "--print-reference is xml, must be toml or markdown" "$train" --print-reference xml

cd "$work" || exit 1
printf '[train]\nmax_step = 5\nlearning_rate = "fast"\n[modle]\n' >bad.toml
expect 2 "^sparseattn-train: bad.toml:2:1: train.max_step is no key of the deck; did you mean train.max_steps\?$" "$train" -i bad.toml
expect 2 "^sparseattn-train: bad.toml:3:17: train.learning_rate is \"fast\", must be a real number, above 0.0" "$train" -i bad.toml
expect 2 "^sparseattn-train: bad.toml:4:2: \[modle\] is no section of the deck; did you mean \[model\]\?$" "$train" -i bad.toml
expect 3 "^sparseattn-train: .*missing.toml" "$train" -i missing.toml
expect 2 "data.path is \"\", must be a token data set" "$train"
expect 3 "missing.h5" "$train" data.path=missing.h5
expect 2 "command line: train.max_steps is many, must be an integer" "$train" train.max_steps=many
expect 2 "command line: max_steps=3 is no override, must be section.key=value" "$train" max_steps=3
expect 2 "must come with the run's --run-dir or its deck" "$train" -r latest
expect 3 "nowhere does not exist" "$train" -r nowhere
expect 2 "checkpoint is required" "$bin/sparseattn-eval"
expect 3 "nowhere does not exist" "$bin/sparseattn-eval" nowhere
expect 2 "path is required" "$bin/sparseattn-inspect"
expect 3 "nowhere" "$bin/sparseattn-inspect" nowhere
refuse "terminate called"
[ ! -e runs ] || fail "a refused run left a folder behind"
finish
