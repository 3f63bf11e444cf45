"""tools/export_model.py: a network with its weights for deployment, compared with what it was exported from."""

from pathlib import Path
from typing import List

import numpy as np
import paddle

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.export import FORMATS, export, open_exported
from paddlevit.models import build_model
from paddlevit.weights import load_weights

BATCHES = (2, 1, 3)


@exit_code
def main(argv: List[str]) -> int:
    """Export the network that `argv` names, run both on random images and print the difference; the exit code."""
    parser = Parser(description="Export a network for deployment.")
    parser.flag("cfg", required=True, metavar="FILE", help="yaml file, or the name of a shipped variant")
    parser.flag("pretrained", required=True, metavar="FILE", help="its weights, of any source")
    parser.flag("format", default="paddle", help="paddle (default), onnx or openvino")
    parser.flag("output", required=True, metavar="DIR", help="folder to write into")
    parser.flag("opts", nargs="*", default=[], metavar="KEY VALUE", help="any keys of the configuration")
    args = parser.parse_args(argv)
    if args.format not in FORMATS:
        raise UserError(f"-format {args.format}, allowed: {', '.join(FORMATS)}")
    config = get_config(args.cfg, args.opts)
    model = build_model(config)
    load_weights(model, args.pretrained)
    model.eval()
    size = config.DATA.IMAGE_SIZE
    shape = [config.DATA.IMAGE_CHANNELS, size, size]
    path = export(model, shape, args.format, Path(args.output))
    predict = open_exported(path)
    difference = scale = 0.0
    for batch in BATCHES:
        images = np.random.default_rng(batch).standard_normal([batch, *shape], dtype="float32")
        with paddle.no_grad():
            logits = model(paddle.to_tensor(images)).numpy()
        difference = max(difference, float(np.abs(predict(images) - logits).max()))
        scale = max(scale, float(np.abs(logits).max()))
    print(f"written to {path}\nlargest difference {difference:.2e} (of logits up to {scale:.2f}), batches {BATCHES}")
    return 0
