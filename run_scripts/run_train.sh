#!/bin/sh
# sh run_scripts/run_train.sh [cfg] [data_path] [further flags]: train on one GPU, or on the CPU.
cfg=${1:-pit_ti_224} data=${2:-./data/imagenet}
[ $# -gt 1 ] && shift 2 || shift $#
exec python tools/main_single_gpu.py -cfg "$cfg" -data_path "$data" "$@"
