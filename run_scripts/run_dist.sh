#!/bin/sh
# sh run_scripts/run_dist.sh [cfg] [data_path] [further flags]: what HRFormer calls run_train_multi.sh.
exec sh "$(dirname "$0")/run_train_multi.sh" "$@"
