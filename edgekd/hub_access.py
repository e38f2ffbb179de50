"""The Hugging Face hub, when this machine cannot reach it: ask the local cache at once, instead of after minutes of retries."""

from __future__ import annotations

import functools
import socket
import sys
from urllib.parse import urlsplit
from urllib.request import getproxies


def prefer_cache_when_unreachable() -> None:
    """Switch the hub's clients to their offline mode for this process, if the hub's name does not resolve.

    Behind a proxy the proxy resolves names, so nothing is switched there.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or "https" in getproxies() or _resolves(urlsplit(constants.ENDPOINT).hostname or ""):
        return
    for module in (constants, sys.modules.get("datasets.config")):
        if module is not None:
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


@functools.cache
def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
