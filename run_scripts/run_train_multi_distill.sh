#!/bin/sh
# sh run_scripts/run_train_multi_distill.sh [cfg] [data_path] [teacher's weights] [further flags]
cfg=${1:-pit_ti_distilled_224} data=${2:-./data/imagenet} teacher=${3:-./regnety_160.pdparams}
[ $# -gt 2 ] && shift 3 || shift $#
exec python tools/main_multi_gpu_distill.py -cfg "$cfg" -data_path "$data" -teacher_model_path "$teacher" -amp "$@"
