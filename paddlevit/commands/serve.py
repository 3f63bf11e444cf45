"""tools/serve.py: a web page and an address for one model. paddlevit/serve/ is the server, served.py its model."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paddlevit.commands.classifier import add_flags, open_classifier
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError
from paddlevit.runtime.settings import use_all_cores

if TYPE_CHECKING:
    from paddlevit.commands.served import Served

_SECONDS_TO_FINISH = 30  # for the answers that are under way when the server is stopped
_TERMINATED = 143
_UVICORN: dict[str, Any] = {
    **{"log_level": "warning", "ws": "none"},
    **dict.fromkeys(("access_log", "server_header", "proxy_headers"), False),
}


@exit_code
def main(argv: list[str]) -> None:
    """Serve the model that `argv` names until SIGINT or SIGTERM; answers that are under way are given first."""
    args = parse_args(argv)
    use_all_cores()
    try:
        import uvicorn

        from paddlevit.commands.served import Served
        from paddlevit.data.decode import FORMATS
        from paddlevit.serve.app import create_app
        from paddlevit.serve.guard import Connection, is_loopback
        from paddlevit.serve.uploads import Limits
    except ImportError as error:
        raise UserError(f"serving needs FastAPI and uvicorn: pip install '.[serve]' in the clone ({error})") from None
    limits = Limits(
        formats=FORMATS,
        max_bytes=round(args.max_megabytes * 2**20),
        max_requests=args.max_requests,
        max_overlays=args.max_overlays,
        max_batch=args.max_batch,
        max_wait=args.max_wait / 1000,
        timeout=args.timeout,
    )
    with _listen(args.host, args.port) as listener:
        classifier = open_classifier(args, precision=args.precision)
        model = Served(classifier)
        loopback = is_loopback(listener.getsockname()[0])
        app = create_app(
            model, classifier.class_names, limits=limits, allowed_hosts=args.allowed_hosts, any_host=not loopback
        )
        config = uvicorn.Config(app, http=Connection, timeout_graceful_shutdown=_SECONDS_TO_FINISH, **_UVICORN)
        _announce(model, listener, loopback)
        # uvicorn calls these when it has finished. Ctrl-C's too: a shell's background jobs begin with it ignored.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        uvicorn.Server(config).run([listener])


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(
        description="Serve a model: a page to drop an image on, and POST /predict.",
        examples=(
            "-pretrained output/flowers/best.pdparams",
            "-cfg pit_s_224 -pretrained pit_s_224.pdparams -host 0.0.0.0 -port 80",
        ),
    )
    add_flags(parser, exported=True)
    flag = parser.flag
    flag("host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    flag("port", type=int, default=8000, help="port to listen at (default 8000; 0: any that is free)")
    flag("allowed_hosts", nargs="+", default=[], metavar="NAME", help="further names of this server, as behind a proxy")
    flag("max_megabytes", type=float, default=10.0, metavar="MIB", help="size of an uploaded file (default 10)")
    flag("max_requests", type=int, default=256, metavar="N", help="requests under way; others get 503 (default 256)")
    flag("max_overlays", type=int, default=16, metavar="N", help="of them, with an overlay; as above (default 16)")
    flag("max_batch", type=int, default=16, metavar="N", help="images that the model sees at once (default 16)")
    flag("max_wait", type=float, least=0, default=5.0, metavar="MS", help="how long an image waits for others (5 ms)")
    flag("timeout", type=float, default=30.0, metavar="S", help="for an upload, and for the answer (default 30 s)")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        raise UserError(f"-port is {args.port}, allowed: 0 to 65535")
    for name in ("max_megabytes", "max_requests", "max_overlays", "max_batch", "timeout"):
        if not getattr(args, name) > 0:
            raise UserError(f"-{name} is {getattr(args, name)}, allowed: above 0")
    return args


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
        # An answer's head and body are written one after the other: the body would wait 40 ms for the head's receipt.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UserError(f"cannot listen at {host}, port {port}: {why} (-host, -port)") from None


def _announce(model: Served, listener: socket.socket, loopback: bool) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{model.name} is at http://{shown}:{port} (Ctrl-C ends)", flush=True)
    if not loopback:
        print(
            f"warning: {host} can be reached from other machines, by anybody: there are no passwords and no encryption",
            file=sys.stderr,
        )
