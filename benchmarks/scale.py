"""What training on many GPUs needs: images to decode and to read, gradients to exchange, memory and checkpoints.

Arithmetic with your own numbers, and two measured ones: the model's parameters, and the bytes that a forward pass keeps
for the backward pass (of one image, on the CPU, in float32).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import get_config
from paddlevit.models import build_model

FLOAT = 4  # bytes
BACKWARD = 2 / 3  # of a step; gradients are exchanged during it
# Of a parameter: weight, gradient, AdamW's two moments, EMA. A checkpoint holds all but the gradient.
IN_MEMORY, IN_CHECKPOINT = 5 * FLOAT, 4 * FLOAT


@exit_code
def main(argv: list[str]) -> int:
    """Print the tables for the numbers in `argv`, or JSON; the exit code."""
    args = parse_args(argv)
    config = get_config(args.cfg)
    model = build_model(config)
    size = sum(param.size for param in model.parameters())
    rows = [row(args, size, gpus) for gpus in args.gpus]
    kept = (saved_bytes(model, config, 3) - saved_bytes(model, config, 1)) / 2
    found: dict[str, Any] = {"parameters": size, "bytes_kept_per_image": kept, "checkpoint_bytes": size * IN_CHECKPOINT}
    found["memory_bytes"] = {batch: size * IN_MEMORY + batch * kept for batch in (32, args.batch_size, 256)}
    print(json.dumps({**found, "rows": rows}) if args.json else as_text(args, found, rows))
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; raises UserError."""
    parser = Parser(prog="python -m benchmarks.scale", description=__doc__)
    flag = parser.flag
    flag("cfg", default="pit_s_224", help="variant (pit_s_224)")
    flag("rate", type=float, default=943, help="training images/s of one GPU (943: pit_s_224 in timm on an RTX 3090)")
    flag("batch_size", type=int, default=128, help="images per GPU and step (128)")
    flag("gpus", type=int, nargs="+", default=[1, 8, 64, 1024], help="numbers of GPUs (1 8 64 1024)")
    flag("gpus_per_machine", type=int, default=8, help="GPUs in a machine (8)")
    flag("cores", type=float, default=12, help="CPU cores for each GPU (12)")
    flag("decode", type=float, default=700, help="images/s that a core decodes (700: EPYC, Zen 4)")
    flag("image_kb", type=float, default=110, help="size of an image file (110: ImageNet's mean)")
    flag("disk", type=float, default=2.0, help="GB/s that a machine reads from its own disks (2)")
    flag("storage", type=float, default=20.0, help="GB/s of a storage that all machines share; 0: none (20)")
    flag("link", type=float, default=20.0, help="GB/s between two GPUs of a machine (20: PCIe 4.0)")
    flag("network", type=float, default=3.1, help="GB/s between machines (3.1: 25 Gbit/s)")
    flag("json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def row(args: argparse.Namespace, size: int, gpus: int) -> dict[str, Any]:
    """Seconds that the parts of a step take on `gpus` GPUs; the longest limits the rate, as they overlap."""
    machines = -(-gpus // args.gpus_per_machine)
    images, files = gpus * args.batch_size, gpus * args.batch_size * args.image_kb * 1e3
    compute = args.batch_size / args.rate
    # A ring: each GPU sends and receives all gradients but its own share, twice (reduce-scatter, all-gather).
    exchanged = 2 * (gpus - 1) / gpus * size * FLOAT
    exchange = exchanged / (1e9 * (args.link if machines == 1 else args.network))
    seconds = {
        "GPU": compute,
        "decoding": args.batch_size / (args.cores * args.decode),
        "disk": files / machines / (args.disk * 1e9),
        "storage": files / (args.storage * 1e9) if args.storage else 0.0,
        "gradients": compute * (1 - BACKWARD) + exchange,
    }
    limit = max(seconds, key=lambda part: seconds[part])
    return {
        "gpus": gpus,
        "images_per_sec": images / seconds[limit],
        "wanted_images_per_sec": gpus * args.rate,
        "cores_needed": gpus * args.rate / args.decode,
        "read_gb_per_sec": gpus * args.rate * args.image_kb / 1e6,
        "exchanged_bytes_per_step": exchanged,
        "exchange_seconds": exchange,
        "seconds": seconds,
        "limit": limit,
    }


def saved_bytes(model: Any, config: Any, images: int) -> int:
    """What a forward pass of `images` images keeps for the backward pass."""
    import paddle

    seen = {}

    def pack(tensor: Any) -> Any:
        seen[tensor.data_ptr()] = (tensor, tensor.size * tensor.element_size())  # kept, or the address is used again
        return tensor

    model.train()
    with paddle.autograd.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(paddle.randn([images, config.DATA.IMAGE_CHANNELS, *[config.DATA.IMAGE_SIZE] * 2]))
    del output
    return sum(size for _, size in seen.values())


def as_text(args: argparse.Namespace, found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Both tables, in Markdown."""
    memory = ", ".join(f"{size / 1e9:.1f} GB at {batch}" for batch, size in found["memory_bytes"].items())
    checkpoint = found["checkpoint_bytes"]
    lines = [
        f"{args.cfg}: {found['parameters'] / 1e6:.1f} M parameters, a checkpoint of {checkpoint / 1e6:,.0f} MB "
        f"({checkpoint / args.disk / 1e9:.2f} s to write at {args.disk:g} GB/s)",
        f"memory per GPU in float32, by batch size: {memory}",
        "",
        "| GPUs | images/s wanted | cores to decode | GB/s to read | gradients per step | limit | images/s |",
        "|--:|--:|--:|--:|--:|---|--:|",
    ]
    for each in rows:
        share = each["images_per_sec"] / each["wanted_images_per_sec"]
        lines.append(
            f"| {each['gpus']:,} | {each['wanted_images_per_sec']:,.0f} | {each['cores_needed']:,.0f} "
            f"| {each['read_gb_per_sec']:.2f} | {each['exchanged_bytes_per_step'] / 1e6:.0f} MB, "
            f"{each['exchange_seconds'] * 1e3:.0f} ms of {each['seconds']['GPU'] * 1e3:.0f} "
            f"| {each['limit']} | {each['images_per_sec']:,.0f} ({share:.0%}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
