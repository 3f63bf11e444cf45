#!/bin/sh
# sh run_scripts/run_flops.sh [cfg] [further flags]: parameters and multiply-accumulates, stage by stage.
cfg=${1:-pit_ti_224}
[ $# -gt 0 ] && shift
exec python tools/count_flops.py -cfg "$cfg" "$@"
