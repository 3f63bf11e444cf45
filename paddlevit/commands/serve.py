"""tools/serve.py: a web page and an address for one network. paddlevit/serve/ is the server; this is its network."""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import sys
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from yacs.config import CfgNode

from paddlevit.attention_maps import class_activation, overlay
from paddlevit.attention_maps.picture import fitted
from paddlevit.commands.classifier import Logits, add_flags, build_classifier, build_logits, configure
from paddlevit.commands.exported import add_exported_flag, configure_exported, exported_logits
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.data import build_preparation
from paddlevit.data.decode import decode
from paddlevit.data.transforms import build_eval_transform
from paddlevit.errors import UserError
from paddlevit.runtime import process

_SECONDS_TO_FINISH = 30  # for the answers that are under way when the server is stopped
_TERMINATED = 143
_OVERLAY_SIDE = 480  # longer side of the picture, in pixels


@exit_code
def main(argv: list[str]) -> int:
    """Serve the network that `argv` names until SIGINT or SIGTERM; answers that are under way are given first."""
    args = parse_args(argv)
    try:
        import uvicorn

        from paddlevit.serve import Connection, Limits, create_app, is_loopback
    except ImportError as error:
        raise UserError(f"serving needs FastAPI and uvicorn: pip install '.[serve]' in the clone ({error})") from None
    limits = Limits(
        max_bytes=round(args.max_megabytes * 2**20),
        max_requests=args.max_requests,
        max_overlays=args.max_overlays,
        max_batch=args.max_batch,
        max_wait=args.max_wait / 1000,
        timeout=args.timeout,
    )
    with _listen(args.host, args.port) as listener:
        network, names = open_network(args)
        loopback = is_loopback(listener.getsockname()[0])
        app = create_app(network, names, limits=limits, allowed_hosts=args.allowed_hosts, any_host=not loopback)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Connection,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=_SECONDS_TO_FINISH,
            )
        )
        _announce(network, listener, loopback)
        # uvicorn calls these when it has finished. Ctrl-C's too: a shell's background jobs begin with it ignored.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        server.run([listener])
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(description="Serve a network: a page to drop an image on, and POST /predict.")
    add_flags(parser)
    add_exported_flag(parser)
    flag = parser.flag
    flag("host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    flag("port", type=int, default=8000, help="port to listen at (default 8000; 0: any that is free)")
    flag("allowed_hosts", nargs="+", default=[], metavar="NAME", help="further names of this server, as behind a proxy")
    flag("max_megabytes", type=float, default=10.0, metavar="MIB", help="size of an uploaded file (default 10)")
    flag("max_requests", type=int, default=256, metavar="N", help="requests under way; others get 503 (default 256)")
    flag("max_overlays", type=int, default=16, metavar="N", help="of them, with an overlay; as above (default 16)")
    flag("max_batch", type=int, default=16, metavar="N", help="images that the network sees at once (default 16)")
    flag("max_wait", type=float, default=5.0, metavar="MS", help="how long an image waits for others (default 5 ms)")
    flag("timeout", type=float, default=30.0, metavar="S", help="for an upload, and for the answer (default 30 s)")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        raise UserError(f"-port is {args.port}, allowed: 0 to 65535")
    for name in ("max_megabytes", "max_requests", "max_overlays", "max_batch", "timeout"):
        if not getattr(args, name) > 0:
            raise UserError(f"-{name} is {getattr(args, name)}, allowed: above 0")
    if not args.max_wait >= 0:
        raise UserError(f"-max_wait is {args.max_wait}, allowed: 0 and above")
    return args


def open_network(args: argparse.Namespace) -> tuple[ServedNetwork, Sequence[str]]:
    """The network that `args` name and what its classes are called."""
    if args.exported:
        config, names, exported = configure_exported(args)
        process.setup(config.DEVICE, config.SEED)
        return ServedNetwork(config, exported_logits(exported), name=f"{exported.parent.name}/{exported.name}"), names
    config, names = configure(args)
    process.setup(config.DEVICE, config.SEED)
    model = build_classifier(config, names)
    return ServedNetwork(config, build_logits(config, model), name=config.MODEL.NAME, model=model), names


class ServedNetwork:
    """A network as paddlevit.serve.Network wants it."""

    def __init__(self, config: CfgNode, logits: Logits, *, name: str, model: nn.Layer | None = None) -> None:
        """Runs the network once, so that the first visitor does not wait for what is made on first use.

        Without `model`, whose gradients say where it has looked, nothing is explained.
        """
        self.explains = model is not None
        self.name = name
        self._model = model
        self._logits = logits
        self._prepare, self._normalize = build_preparation(config)
        self._source_box = build_eval_transform(config).source_box
        data = config.DATA
        black = np.zeros([1, data.IMAGE_SIZE, data.IMAGE_SIZE, data.IMAGE_CHANNELS], "uint8")
        probabilities, _ = self.classify(black, [0] * self.explains)
        self.num_classes = probabilities.shape[1]

    def prepare(self, data: bytes) -> np.ndarray:
        """Pixels of an image file as evaluation sees them, uint8 [H, W, C]. Raises UserError for a damaged file."""
        return self._prepare(decode(data, "the image"))

    def classify(self, pixels: np.ndarray, explain: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Probabilities [N, classes] of images [N, H, W, C]; of those in `explain`, where the likeliest was seen."""
        images = self._normalize(paddle.to_tensor(pixels))
        probabilities = F.softmax(self._logits(images).astype("float32")).numpy()
        chosen = list(explain)
        if not chosen or self._model is None:
            return probabilities, {}
        some = paddle.stack([images[i] for i in chosen])
        heats = class_activation(self._model, some, probabilities[chosen].argmax(axis=1).tolist())
        return probabilities, dict(zip(chosen, heats))

    def overlay(self, data: bytes, heat: np.ndarray) -> bytes:
        """The map over the image, as a PNG file."""
        image = decode(data, "the image")
        file = io.BytesIO()
        image, box = fitted(image, self._source_box(image.size), _OVERLAY_SIDE)
        overlay(image, heat, box).save(file, "PNG", compress_level=1)
        return file.getvalue()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UserError(f"cannot listen at {host}, port {port}: {why} (-host, -port)") from None


def _announce(network: ServedNetwork, listener: socket.socket, loopback: bool) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{network.name} is at http://{shown}:{port} (Ctrl-C ends)", flush=True)
    if not loopback:
        print(
            f"warning: {host} can be reached from other machines, by anybody: there are no passwords and no encryption",
            file=sys.stderr,
        )
