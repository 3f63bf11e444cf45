#!/bin/sh
# sh run_scripts/run_train_multi.sh [cfg] [data_path] [further flags]: train on all visible GPUs, with mixed precision.
cfg=${1:-pit_ti_224} data=${2:-./data/imagenet}
[ $# -gt 1 ] && shift 2 || shift $#
exec python tools/main_multi_gpu.py -cfg "$cfg" -data_path "$data" -amp "$@"
