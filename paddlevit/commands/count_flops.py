"""tools/count_flops.py: parameters, multiply-accumulates and activations of a model, stage by stage."""

from __future__ import annotations

import json
from typing import Any

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.runtime.streams import only_results


@exit_code
def main(argv: list[str]) -> int:
    """Print the counts of the model that `argv` names; the exit code."""
    parser = Parser(
        description="Count parameters and multiply-accumulates of one image.",
        usage="%(prog)s -cfg VARIANT [flags]",
        examples=("-cfg pit_s_224", "-cfg hrt_base -image_size 384 -json"),
    )
    parser.flag("cfg", required=True, metavar="FILE", help="yaml file, or the name of a shipped variant")
    parser.flag("image_size", type=int, help="side of the image (default: the configuration's)")
    parser.flag("json", action="store_true", help="print one JSON object instead of a table")
    parser.opts()
    args = parser.parse_args(argv)
    from paddlevit.config import get_config, with_values
    from paddlevit.flops import count
    from paddlevit.models import build_model

    config = get_config(args.cfg, args.opts)
    if args.image_size is not None:
        config = with_values(config, {"DATA.IMAGE_SIZE": args.image_size})
    with only_results() as out:
        counts = count(build_model(config), config.DATA.IMAGE_SIZE)
        counts = {"name": config.MODEL.NAME, "image_size": config.DATA.IMAGE_SIZE, **counts}
        print(json.dumps(counts) if args.json else _table(counts), file=out)
    return 0


def _table(counts: dict[str, Any]) -> str:
    rows = [(name, part["params"], part["macs"], part["activations"]) for name, part in counts["parts"].items()]
    rows.append(("total", counts["params"], counts["macs"], counts["activations"]))
    width = max(len(row[0]) for row in rows)
    title = f"{counts['name']}, one image of {counts['image_size']} x {counts['image_size']}"
    head = f"{'':{width}}  {'parameters':>12}  {'MACs':>10}  {'activations':>11}"
    lines = [
        f"{name:{width}}  {params:>12,}  {macs / 1e9:>8.4f} G  {activations / 1e6:>9.3f} M"
        for name, params, macs, activations in rows
    ]
    return "\n".join([title, head, *lines, f"of which attention products: {counts['attention_macs'] / 1e9:.4f} G MACs"])
