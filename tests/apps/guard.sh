#!/bin/sh
# How jobs end. Arguments: the folder of this script, the probe program, mpirun with its flags.
here=$1
probe=$2
shift 2
# shellcheck source=tests/apps/expect.sh
. "$here/expect.sh"
mpirun="$*"

expect 0 "^rank 0 of 1$" "$probe" ok
expect 0 "^rank 0 of 1$" "$probe" ok --kokkos-threads=1
expect 0 "^rank 0 of 1$" env SPARSEATTN_MPI=off "$probe" ok
expect 2 "^probe: environment: SPARSEATTN_MPI is maybe, must be on or off$" env SPARSEATTN_MPI=maybe "$probe" ok
expect 2 "^probe: command line: a mode is missing$" "$probe"
expect 3 "^probe: the disk of this rank is gone$" "$probe" alone
expect 4 "^probe: loss is nan$" "$probe" together
refuse "rank 0"

# $mpirun is a command with its flags: split on purpose.
# shellcheck disable=SC2086
{
    expect 0 "^rank 1 of 2$" $mpirun -n 2 "$probe" ok
    start=$(date +%s)
    expect 3 "^probe: rank 1 of 2: the disk of this rank is gone$" $mpirun -n 2 "$probe" alone
    expect 4 "^probe: rank 1: loss is nan$" $mpirun -n 2 "$probe" together
    refuse "MPI_ABORT"
    [ "$(grep -c 'loss is nan' "$work/output")" -eq 1 ] || fail "an agreed failure is printed more than once"
    expect 2 "^probe: command line: a mode is missing$" $mpirun -n 2 "$probe"
    [ "$(grep -c 'a mode is missing' "$work/output")" -eq 1 ] || fail "a usage error is printed more than once"
    expect 70 "started 2 processes, but MPI is switched off" $mpirun -n 2 env SPARSEATTN_MPI=off "$probe" ok
    [ $(($(date +%s) - start)) -lt 30 ] || fail "failing jobs took longer than 30 s to end"
}

wait_for() {
    tries=0
    while ! grep -q "$1" "$work/waiting" && [ $tries -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
}
# One process: USR2 goes on, USR1 stops with 75; TERM stops likewise.
for signal in USR1 TERM INT; do
    : >"$work/waiting"
    # sh starts background jobs with INT ignored; the probe's own handler replaces that.
    "$probe" wait >"$work/waiting" 2>&1 &
    process=$!
    wait_for ready
    kill -s USR2 "$process"
    wait_for checkpoint
    kill -s "$signal" "$process"
    wait "$process"
    code=$?
    cp "$work/waiting" "$work/output"
    [ "$code" -eq 75 ] || fail "$signal gave exit code $code instead of 75"
    grep -q checkpoint "$work/output" || fail "USR2 was not seen"
    grep -q stopped "$work/output" || fail "$signal was not seen"
done
# Two ranks: one of them gets USR1 (not every mpirun hands it on), both stop.
: >"$work/waiting"
# shellcheck disable=SC2086
$mpirun -n 2 "$probe" wait >"$work/waiting" 2>&1 &
process=$!
wait_for ready
sleep 1
kill -s USR1 "$(sed -n 's/^ready //p' "$work/waiting" | tail -n 1)"
wait "$process"
code=$?
cp "$work/waiting" "$work/output"
[ "$code" -eq 75 ] || fail "USR1 to a rank gave exit code $code instead of 75"
grep -q stopped "$work/output" || fail "USR1 to one rank did not stop the other"
finish
