#!/bin/sh
# sh run_scripts/run_flops.sh [cfg] [further flags]: parameters and multiply-accumulates, stage by stage.
cfg=pit_ti_224
for name in cfg; do
    case ${1--} in -*) break ;; esac  # further flags
    eval "$name=\${1:-\$$name}" && shift
done
exec python "$(dirname "$0")/../tools/count_flops.py" -cfg "$cfg" "$@"
