#!/bin/sh
# sh run_scripts/run_finetune_multi_distill.sh [cfg] [data_path] [teacher's weights] [weights to start from] [further flags]
cfg=pit_b_distilled_384 data=./data/imagenet teacher=./regnety_160.pdparams start=./pit_b_distilled_224.pdparams
for name in cfg data teacher start; do
    case ${1--} in -*) break ;; esac  # further flags
    eval "$name=\${1:-\$$name}" && shift
done
exec sh "$(dirname "$0")/tool.sh" main_multi_gpu_distill.py -cfg "$cfg" -data_path "$data" -teacher_model_path "$teacher" \
    -pretrained "$start" -batch_size 32 -amp "$@"
