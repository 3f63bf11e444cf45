#!/bin/sh
# sh run_scripts/run_flops.sh [cfg] [data_path] [dataset] [further flags]: parameters and multiply-accumulates.
cfg=pit_ti_224 data= dataset=
for name in cfg data dataset; do
    case ${1--} in -*) break ;; esac  # further flags
    eval "$name=\${1:-\$$name}" && shift
done
[ -z "$data" ] || echo "counting needs no data: $data $dataset is not read" >&2
exec sh "$(dirname "$0")/tool.sh" count_flops.py -cfg "$cfg" "$@"
