"""tools/count_flops.py: parameters and multiply-accumulates of a model, stage by stage."""

from __future__ import annotations

import json
from typing import Any

from paddlevit.commands.parser import Parser, exit_code, table
from paddlevit.config import get_config, update_config
from paddlevit.runtime.streams import only_results


@exit_code
def main(argv: list[str]) -> None:
    """Print the counts of the model that `argv` names."""
    parser = Parser(
        description="Count parameters and multiply-accumulates of one image.",
        examples=("-cfg pit_s_224", "-cfg hrt_base -image_size 384 -json"),
    )
    parser.flag("cfg", required=True)
    parser.flags("image_size json")
    parser.opts()
    args = parser.parse_args(argv)
    from paddlevit.flops import count
    from paddlevit.models import build_model

    config = update_config(get_config(), args)
    with only_results() as out:
        counts = count(build_model(config), config.DATA.IMAGE_SIZE)
        counts = {"name": config.MODEL.NAME, "image_size": config.DATA.IMAGE_SIZE, **counts}
        print(json.dumps(counts) if args.json else _table(counts), file=out)


def _table(counts: dict[str, Any]) -> str:
    parts = {**counts["parts"], "total": counts}
    rows = [(name, f"{part['params']:,}", f"{part['macs'] / 1e9:.4f} G") for name, part in parts.items()]
    title = f"{counts['name']}, one image of {counts['image_size']} x {counts['image_size']}"
    shown = table([("", "parameters", "MACs"), *rows], ">")
    return f"{title}\n{shown}\nof which attention products: {counts['attention_macs'] / 1e9:.4f} G MACs"
