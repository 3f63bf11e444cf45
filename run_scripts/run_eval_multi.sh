#!/bin/sh
# sh run_scripts/run_eval_multi.sh [cfg] [weights] [data_path] [further flags]: evaluate on all visible GPUs.
cfg=pit_ti_224 weights=./pit_ti_224.pdparams data=./data/imagenet
for name in cfg weights data; do
    case ${1--} in -*) break ;; esac  # further flags
    eval "$name=\${1:-\$$name}" && shift
done
exec sh "$(dirname "$0")/tool.sh" main_multi_gpu.py -cfg "$cfg" -data_path "$data" -eval -pretrained "$weights" "$@"
