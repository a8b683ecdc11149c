"""Signatures of what we post: receivers check them with libraries that we did not write."""

from __future__ import annotations

from datetime import UTC, datetime

from celeriac.webhooks.signing import key_of, signed


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of the specification of Standard Webhooks."""
    headers = signed(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC),
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_secret_may_be_any_text() -> None:
    assert key_of("not-in-base64-but-long-enough") == b"not-in-base64-but-long-enough"
