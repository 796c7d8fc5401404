#!/bin/sh
# Time of a training step: one rank with N threads against N ranks with one thread each, alternating.
# usage: perf/sequence_step.sh [-n RANKS] [-r ROUNDS] BENCH_SEQUENCE_STEP [tokens [steps [layers]]]
# Environment: MPIRUN (default "mpirun --bind-to none").
set -eu

ranks=2 rounds=3
while getopts n:r: option; do
    case "$option" in
        n) ranks=$OPTARG ;;
        r) rounds=$OPTARG ;;
        *) sed -n '3,4s/^# //p' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { sed -n '3,4s/^# //p' "$0" >&2; exit 2; }
mpirun=${MPIRUN:-mpirun --bind-to none}
log=$(mktemp)
part=$(mktemp)
trap 'rm -f "$log" "$part"' EXIT

round=0
while [ "$round" -lt "$rounds" ]; do
    for count in 1 "$ranks"; do
        # shellcheck disable=SC2086  # a command with its options
        OMP_NUM_THREADS=$((ranks / count)) OMP_PROC_BIND=false $mpirun -np "$count" "$@" >"$part"
        sed "s/^/$count /" "$part" >>"$log"
    done
    round=$((round + 1))
done
echo "$(sed -n '1s/^[0-9]* //p' "$log" | sed 's/; ranks.*//'); best of $rounds rounds; $(uptime | sed 's/.*load/load/')"
awk -v ranks="$ranks" '
    $4 == "s/step" {
        if (!(($1, $2) in best)) { best[$1, $2] = $3; if ($1 == 1) names[++cases] = $2 }
        if ($3 < best[$1, $2]) best[$1, $2] = $3
        if ($1 == ranks) bytes[$2] = $7
    }
    END {
        printf "%-12s %14s %14s %8s %14s\n", "case", "1 x " ranks " s/step", ranks " x 1 s/step", "speed", "MB/step, rank"
        for (i = 1; i <= cases; ++i) {
            name = names[i]
            printf "%-12s %14.3f %14.3f %8.2f %14.1f\n", name, best[1, name], best[ranks, name],
                   best[1, name] / best[ranks, name], bytes[name]
        }
    }' "$log"
