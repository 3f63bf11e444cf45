"""The page: one file that fetches nothing from elsewhere, and the policy that holds a browser to it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path


@functools.cache
def page() -> str:
    """The HTML."""
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


@functools.cache
def policy() -> str:
    """The Content-Security-Policy: of scripts and styles only the page's own, by their hashes."""
    rules = [
        "default-src 'none'",
        f"script-src {_hash('script')}",
        f"style-src {_hash('style')}",
        "img-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(rules)


def _hash(tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page(), re.S)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
