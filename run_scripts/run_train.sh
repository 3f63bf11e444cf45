#!/bin/sh
# sh run_scripts/run_train.sh [cfg] [data_path] [further flags]: train on one GPU, or on the CPU.
cfg=pit_ti_224 data=./data/imagenet
for name in cfg data; do
    case ${1--} in -*) break ;; esac  # further flags
    eval "$name=\${1:-\$$name}" && shift
done
exec sh "$(dirname "$0")/tool.sh" main_single_gpu.py -cfg "$cfg" -data_path "$data" "$@"
