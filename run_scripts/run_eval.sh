#!/bin/sh
# sh run_scripts/run_eval.sh [cfg] [weights] [data_path] [further flags]: evaluate on one GPU, or on the CPU.
cfg=${1:-pit_ti_224} weights=${2:-./pit_ti_224.pdparams} data=${3:-./data/imagenet}
[ $# -gt 2 ] && shift 3 || shift $#
exec python tools/main_single_gpu.py -cfg "$cfg" -data_path "$data" -eval -pretrained "$weights" "$@"
