"""tools/convert_weights.py: a weights file of any known source, written with our names or those of another project."""

from __future__ import annotations

from pathlib import Path

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import get_config
from paddlevit.errors import UserError


@exit_code
def main(argv: list[str]) -> None:
    """Convert the file that `argv` names and print what was loaded."""
    args = _parser().parse_args(argv)
    output = args.output
    if output.suffix not in (".pdparams", ".safetensors", ".pth"):
        raise UserError(f"-output must end in .pdparams, .safetensors or .pth, got {output}")
    import numpy as np
    import paddle

    from paddlevit.models import build_model
    from paddlevit.runtime.files import write_file
    from paddlevit.weights import export_state_dict, load_weights
    from paddlevit.weights.writers import WRITERS

    config = get_config(args.cfg, args.opts)
    model = build_model(config)
    model.eval()
    print(load_weights(model, args.input, which=args.weights, source=args.source))
    shape = (1, config.DATA.IMAGE_CHANNELS, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE)
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal(shape).astype("float32"))
    with paddle.no_grad():
        logits = model(images)
        state = export_state_dict(model, args.layout)
        write_file(output, lambda part: WRITERS[output.suffix](part, state))
        again = load_weights(model, output, source=args.layout)
        difference = (model(images) - logits).abs().max().item()
    compared = f"differ by {difference:g} at most" if np.isfinite(difference) else "are not finite, as before it"
    print("\n".join([f"written to {output}, layout {args.layout}; read again, its logits {compared}", *again.notes]))


def _parser() -> Parser:
    parser = Parser(
        description="Write a weights file of any known source as a file for this or another project.",
        examples=(
            "-cfg pit_ti_224 -input pit_ti_730.pth -output pit_ti_224.pdparams",
            "-cfg pit_ti_224 -input output/run/best.pdparams -output pit_ti_224.safetensors -layout timm",
            "-cfg cvt-13-224x224 -input model.safetensors -output flowers.pdparams -opts MODEL.NUM_CLASSES 5",
        ),
    )
    parser.flag("cfg", required=True)
    parser.flag("input", required=True, metavar="FILE", help=".pdparams, .pth, .pt, .bin or .safetensors")
    files = "the .pdparams, .safetensors or .pth file to write"
    parser.flag("output", required=True, type=Path, metavar="FILE", help=files)
    parser.flag("weights", choices=("model", "ema"), default="model", help="which of -input (default: model)")
    parser.flag("source", default="auto", help="official, timm, hf, paddlevit or ours (default: by names and shapes)")
    layouts = ("ours", "paddlevit", "official", "timm", "hf")
    parser.flag("layout", choices=layouts, default="ours", help="whose names and axes to write (default: ours)")
    parser.opts()
    return parser
