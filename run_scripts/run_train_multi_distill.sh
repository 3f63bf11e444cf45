#!/bin/sh
# sh run_scripts/run_train_multi_distill.sh [cfg] [data_path] [teacher's weights] [further flags]
cfg=pit_ti_distilled_224 data=./data/imagenet teacher=./regnety_160.pdparams
for name in cfg data teacher; do
    case ${1--} in -*) break ;; esac  # further flags
    eval "$name=\${1:-\$$name}" && shift
done
exec sh "$(dirname "$0")/tool.sh" main_multi_gpu_distill.py -cfg "$cfg" -data_path "$data" -teacher_model_path "$teacher" -amp "$@"
