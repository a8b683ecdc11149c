"""Signatures of what we post to others: those of Standard Webhooks (standardwebhooks.com), version 1.

Whoever receives it computes HMAC-SHA256 of `{id}.{timestamp}.{body}` with the shared secret and compares; libraries for
most languages do so.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final

#: How a secret may begin that is written in base64, as the libraries write them.
PREFIX: Final = "whsec_"


def key_of(secret: str) -> bytes:
    """secret: in base64 after PREFIX, as settings check it, or any other text."""
    return base64.b64decode(secret.removeprefix(PREFIX)) if secret.startswith(PREFIX) else secret.encode()


def signed(secret: str, id: str, at: datetime, body: bytes) -> Mapping[str, str]:
    """The headers of a message. id: the same whenever it is sent again. at: now; receivers refuse what is old."""
    seconds = str(int(at.timestamp()))
    digest = hmac.new(key_of(secret), b".".join((id.encode(), seconds.encode(), body)), hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": seconds,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
