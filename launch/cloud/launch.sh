#!/usr/bin/env bash
# Starts a job in a cloud, its work folder in a bucket; started again, it goes on from the checkpoint there.
#
#   bash launch/cloud/launch.sh [--dryrun] TARGET gs://BUCKET/RUN [flags of the job, --config=... first of all]
#
# TARGET: gpu, gpus, tpu, tpu_slice: SkyPilot's managed jobs (pip install "skypilot[gcp]"; sky check), the task files
# beside this script. gke: a TPU slice in a GKE cluster by xpk (pip install xpk); CLUSTER, ZONE and PROJECT name it,
# TPU_TYPE (v5litepod-256) and SLICES (1) say what of it. JOB (synthesize) is the script in launch/ to run; on gpus,
# tpu_slice and gke, where several processes run it, one that shares its work.
# --dryrun prints what would be started, and starts nothing.
set -euo pipefail
unset CDPATH  # with it, cd prints where it went
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fail() { echo "launch.sh: $*" >&2; exit 2; }
dryrun=
if [ "${1:-}" = --dryrun ]; then dryrun=1; shift; fi
if [ $# -lt 2 ] || [[ "$2" != *://?* ]]; then
    fail "expected [--dryrun] gpu|gpus|tpu|tpu_slice|gke gs://BUCKET/RUN [flags of the job]"
fi
target=$1 workdir=$2 job=${JOB:-synthesize}
shift 2
case $target in
    gpu | tpu) needed='flags.DEFINE_string("workdir"' expected="one of" ;;
    gpus | tpu_slice | gke) needed="several=True" expected="one that several processes share:" ;;
    *) fail "found the target '$target', expected gpu, gpus, tpu, tpu_slice or gke" ;;
esac
jobs=$(cd "$here/.." && grep -lF define_config $(grep -lF "$needed" *.py) | sed 's/\.py$//')  # the scripts themselves say it
grep -qxF -e "$job" <<< "$jobs" || fail "found JOB=$job for $target, expected $expected" $jobs
for flag in "$@"; do
    if [[ $flag =~ ^--?dry[-_]?run ]]; then fail "found $flag among the flags, give --dryrun before the target"; fi
done
if [ $# = 0 ]; then
    [[ $job == @(synthesize|quantize|distill) ]] || fail "found no flags for JOB=$job, expected its --config=... first of all"
    set -- --config=configs/default.py --config.model=timm/deit_base_patch16_224.fb_in1k --config.data= --config.dtype=bfloat16
fi
flags=$(printf '%q ' "$@")  # a shell reads them again on the machine
if [ "$target" = gke ]; then
    for name in CLUSTER ZONE PROJECT; do
        [ -n "${!name:-}" ] || fail "gke needs $name=..., which names the cluster with CLUSTER, ZONE and PROJECT"
    done
    [[ ${SLICES:-1} =~ ^[1-9][0-9]*$ ]] || fail "found SLICES=$SLICES, expected a whole number from 1"
    # Exit codes: 75 a process was lost, 143 preempted. Neither counts as a failure of the job.
    name=$(printf %s "psaq-$(basename "$workdir")" | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9-' '-' | cut -c -30)
    name=$(sed 's/-*$//' <<< "$name")  # as Kubernetes takes it
    command=(xpk workload create --cluster "$CLUSTER" --zone "$ZONE" --project "$PROJECT"
        --workload "$name" --tpu-type "${TPU_TYPE:-v5litepod-256}" --num-slices "${SLICES:-1}" --spot
        --max-restarts 100 --restart-on-exit-codes 75,143
        --base-docker-image python:3.11 --script-dir .
        --command "bash launch/cloud/setup.sh tpu && exec .venv/bin/python -m launch.$job $flags --workdir=$(printf %q "$workdir") --quiet --distributed=on")
else
    command=(sky jobs launch --yes --detach-run "$here/$target.yaml"
        --env "WORKDIR=$workdir" --env "JOB=$job" --env "FLAGS=$flags")
    if [ -n "${XLA_FLAGS:-}" ]; then command+=(--env "XLA_FLAGS=$XLA_FLAGS"); fi  # such as those for equal bits on a GPU
fi
if [ -n "$dryrun" ]; then
    printf '%q ' "${command[@]}"
    echo
    if [ "$target" != gke ]; then
        echo "# $target.yaml, with WORKDIR=$workdir JOB=$job FLAGS=$flags:"
        grep -v '^#' "$here/$target.yaml"
    fi
    exit
fi
command -v "${command[0]}" > /dev/null || fail "found no ${command[0]} here, install it as the top of this script says"
cd "$here/../.."
exec "${command[@]}"
