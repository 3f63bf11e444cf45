"""Published weights: where they are, and fetching them into the cache."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import yaml
from tqdm import tqdm

from paddlevit.errors import UserError
from paddlevit.runtime.files import sha256

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_NOT_THERE = (401, 403, 404)  # the hub asks who one is where there is nothing
_SECONDS_OF_SILENCE = 30


def published() -> list[dict[str, Any]]:
    """The rows of published.yaml."""
    return yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))


def variant_of(weights: str) -> str | None:
    """The variant that published weights are of, by its own name or their address; None for all others."""
    return _row(weights).get("variant")


def _row(weights: str) -> dict[str, Any]:
    return next((row for row in published() if weights in (row["variant"], row.get("address"))), {})


def official(weights: str | os.PathLike[str], variant: str) -> str | os.PathLike[str]:
    """`weights`, or where that is 'official' `variant`, whose published weights it means. Raises UserError."""
    if weights != "official":
        return weights
    if variant_of(variant) is None:
        raise UserError(f"no published weights of '{variant}' are known (paddlevit weights list)")
    return variant


def fetch(weights: str) -> Path | None:
    """The file of hf:OWNER/NAME, or of a variant with published weights, in the cache; None for other names.

    What is not in the cache yet is fetched. Raises UserError.
    """
    row = _row(weights)
    if not row and not weights.startswith("hf:"):
        return None
    if "page" in row:
        raise UserError(
            f"the weights of {weights} have no address that can be fetched: save them from {row['page']} and name the "
            "file with -pretrained FILE"
        )
    places = _places(row.get("address", weights))
    for file in places.values():
        if file.is_file():
            return file
    for address, file in places.items():
        try:
            _download(address, file, row.get("sha256", ""))
            return file
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "code", None) not in _NOT_THERE:
                raise UserError(
                    f"{address} could not be fetched: {error}.\n"
                    f"The same command resumes. Or fetch the file by other means and put it at {file}"
                ) from None
            answered = error
    raise UserError(f"{address}: the server answers '{answered}'; is there such a public file?")


def _places(address: str) -> dict[str, Path]:
    """Where a file may be: addresses, and for each the file of the cache."""
    cache = Path(os.path.expanduser(os.environ.get("PADDLEVIT_CACHE") or "~/.cache/paddlevit"))
    if not address.startswith("hf:"):
        return {address: cache / address.rsplit("/", 1)[-1]}
    if not re.fullmatch(r"hf:\w[\w.-]*/\w[\w.-]*", address):
        raise UserError(f"weights of the Hugging Face hub are called hf:OWNER/NAME, got '{address}'")
    hub = (os.environ.get("HF_ENDPOINT") or "huggingface.co").rstrip("/")
    hub = hub if "://" in hub else f"https://{hub}"  # mirrors are often named without
    return {f"{hub}/{address[3:]}/resolve/main/{name}": cache / address[3:] / name for name in _HUB_FILES}


def _download(address: str, file: Path, expected: str) -> None:
    """Fetch `address` to `file`, which appears when it is complete and has the checksum that is known of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / ".lock").open("a") as lock:
        with contextlib.suppress(OSError, ImportError):  # there are file systems, and Windows, without locks
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)  # one process or thread fetches, the others wait for it
        if file.is_file():
            return
        part = file.with_name(f"{file.name}.part")
        known = [expected, _receive(address, part)]
        found = sha256(part)
        for digits in known:
            if not found.startswith(digits):
                part.unlink()
                raise UserError(f"{address} came with the sha256 {found}, not {digits}: it is deleted; try again")
        Path(f"{file}.sha256").write_text(f"{found}  {file.name}\n", encoding="utf-8")
        part.replace(file)


def _receive(address: str, part: Path) -> str:
    """Append what `part` lacks of the file at `address`; the sha256 that the server says it has, or ""."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(address, headers={"User-Agent": "paddlevit", **({"Range": f"bytes={have}-"} if have else {})})
    redirects = _Redirects()
    try:
        answer = build_opener(redirects).open(request, timeout=_SECONDS_OF_SILENCE)
    except HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # it is as long as the file already, or longer
        return _receive(address, part)
    with answer, part.open("ab" if answer.status == http.client.PARTIAL_CONTENT else "wb") as out:
        have = out.tell()
        total = have + int(answer.headers.get("Content-Length", 0))
        name = address.rsplit("/", 1)[-1]
        with tqdm(total=total or None, initial=have, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := answer.read(1 << 20):
                bar.update(out.write(chunk))
        if out.tell() < max(total, 1):
            raise ConnectionError(f"the connection ended after {out.tell():,} of {total:,} bytes")
    return redirects.sha256


class _Redirects(HTTPRedirectHandler):
    """The hub names the checksum of a file as it sends one on to where that is."""

    sha256 = ""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        digits = headers.get("X-Linked-ETag", "").strip('"')
        self.sha256 = digits if re.fullmatch(r"[0-9a-f]{64}", digits) else self.sha256
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def changed(file: Path) -> bool:
    """Whether a file of the cache is another than was fetched; nothing is known of one put there by hand."""
    noted = Path(f"{file}.sha256")
    return noted.is_file() and not noted.read_text(encoding="utf-8").startswith(sha256(file))
