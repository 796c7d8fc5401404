#!/bin/sh
# Text to a data set and back to what it says of itself. Arguments: the folder of this script, the folder of the programs.
here=$1
bin=$2
# shellcheck source=tests/apps/expect.sh
. "$here/expect.sh"
convert=$bin/sparseattn-convert
inspect=$bin/sparseattn-inspect
cd "$work" || exit 1

mkdir text
i=0
while [ $i -lt 20 ]; do
    printf 'document %d of the set\nwith a second line\n' $i >text/$i.txt
    i=$((i + 1))
done
: >text/empty.txt
printf 'a\0b' >text/binary.txt
echo "not wanted" >text/other.dat

expect 0 "documents" "$convert" text -o set.h5 --validation 0.2 --extension .txt text
expect 0 "259" "$inspect" set.h5
expect 0 "\"kind\": *\"token" "$inspect" --json set.h5
expect 0 "." "$inspect" --verify set.h5
expect 3 "set.h5 holds no deck, must be a checkpoint" "$inspect" --deck set.h5
"$convert" text -o again.h5 --validation 0.2 --extension .txt text >/dev/null 2>&1
cmp -s set.h5 again.h5 || fail "the same input gives another file"

expect 2 "what to convert is missing" "$convert"
expect 2 "unexpected argument frob" "$convert" frob
expect 2 "inputs is required" "$convert" text -o x.h5
expect 2 "--output is required" "$convert" text text
expect 2 "unknown option --validaton; did you mean --validation\?" "$convert" text -o x.h5 --validaton 0.1 text
expect 2 "--validation" "$convert" text -o x.h5 --validation abc text
expect 2 "--validation" "$convert" text -o x.h5 --validation 3 text
expect 3 "nowhere" "$convert" text -o x.h5 nowhere
expect 3 "missing/" "$convert" text -o missing/x.h5 text
[ ! -e x.h5 ] || fail "a failed conversion left x.h5 behind"

# Damage: cut short, one byte changed, something else altogether.
head -c 3000 set.h5 >short.h5
expect 3 "short.h5" "$inspect" short.h5
expect 3 "0.txt" "$inspect" text/0.txt
finish
