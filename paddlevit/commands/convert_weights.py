"""tools/convert_weights.py: a weights file of any known source, written as our `.pdparams`."""

from __future__ import annotations

from pathlib import Path

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError


@exit_code
def main(argv: list[str]) -> int:
    """Convert the file that `argv` names and print what was loaded; the exit code."""
    parser = Parser(
        description="Write a weights file of any known source as a .pdparams file.",
        usage="%(prog)s -cfg VARIANT -input FILE -output FILE [flags]",
        examples=(
            "-cfg pit_ti_224 -input pit_ti_730.pth -output pit_ti_224.pdparams",
            "-cfg cvt-13-224x224 -input model.safetensors -output flowers.pdparams -opts MODEL.NUM_CLASSES 5",
        ),
    )
    parser.flag("cfg", required=True, metavar="FILE", help="yaml file, or the name of a shipped variant")
    parser.flag("input", required=True, metavar="FILE", help=".pdparams, .pth, .pt, .bin or .safetensors")
    parser.flag("output", required=True, metavar="FILE", help="the .pdparams file to write")
    parser.flag(
        "weights", choices=("model", "ema"), default="model", help="the model or its moving average (default: model)"
    )
    parser.flag("source", default="auto", help="official, timm, hf, paddlevit or ours (default: by names and shapes)")
    parser.flag(
        "opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any keys of the configuration"
    )
    args = parser.parse_args(argv)
    if not args.output.endswith(".pdparams"):
        raise UserError(f"-output {args.output} does not end in .pdparams")
    from paddlevit.config import get_config
    from paddlevit.models import build_model
    from paddlevit.training.checkpoint import write_weights
    from paddlevit.weights import load_weights

    model = build_model(get_config(args.cfg, args.opts))
    report = load_weights(model, args.input, which=args.weights, source=args.source)
    write_weights(Path(args.output), model.state_dict())
    print(f"{report}\nwritten to {args.output}")
    return 0
