#!/bin/sh
# sh run_scripts/run_finetune_multi_distill.sh [cfg] [data_path] [teacher's weights] [weights to start from] [further flags]
cfg=${1:-pit_b_distilled_384} data=${2:-./data/imagenet} teacher=${3:-./regnety_160.pdparams}
start=${4:-./pit_b_distilled_224.pdparams}
[ $# -gt 3 ] && shift 4 || shift $#
exec python tools/main_multi_gpu_distill.py -cfg "$cfg" -data_path "$data" -teacher_model_path "$teacher" \
    -pretrained "$start" -batch_size 32 -amp "$@"
