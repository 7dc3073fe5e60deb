#!/bin/sh
# Trains launch/digits.toml with every process started by a command of its own: what one would type
# in several terminals, or on several hosts.
#
#   launch/by-hand.sh [ADDRESS] [ARGUMENTS OF THE COORDINATOR …]
#   launch/by-hand.sh tcp://127.0.0.1:6000 --set run.epochs=10 --out runs/by-hand
#
# On several hosts: the coordinator with --bind tcp://0.0.0.0:5555 --keys DIR, each worker with --keys DIR and
# --coordinator tcp://HOST:5555 (`asyncdni keys new DIR`). Workers need neither the experiment file nor others'
# addresses; the worker of the first stage needs the data set. Each listens at a port of its own for those next to it,
# any free one or as --bind tcp://0.0.0.0:6000-6099 says: SECURITY.md has the ports that must be open.
#
# Ctrl-C stops the coordinator, which has all workers save what was learned (with --out) and leave.
set -eu

asyncdni=${ASYNCDNI:-asyncdni} # or "python3 -P -m asyncdni"
experiment=$(dirname "$0")/digits.toml
address=tcp://127.0.0.1:5555
case "${1:-}" in
tcp://* | ipc://*)
    address=$1
    shift
    ;;
esac

# One BLAS thread a worker: NumPy reads this when it is imported.
export OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_NUM_THREADS=1

# A shell's background processes ignore Ctrl-C, so it reaches the coordinator alone.
workers=
for stage in hidden1 hidden2 hidden3 classifier; do
    $asyncdni worker --stage "$stage" --coordinator "$address" &
    workers="$workers $!"
done
trap : INT # live on to clean up

status=0
$asyncdni coordinator "$experiment" --bind "$address" "$@" || status=$?
if [ "$status" -ne 0 ]; then
    kill $workers 2>/dev/null || : # those that have not left by themselves
fi
wait
exit "$status"
