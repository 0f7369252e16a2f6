"""What every call to the Hub needs: bounded waiting, one message per failure, and a token that is never shown."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, OIDCError
from huggingface_hub.utils import _http, hf_raise_for_status, parse_ratelimit_headers

from ham10000.modeling import Ham10000Error

# The client sets no timeout of its own for most calls. A commit of many files may take the Hub most of a minute.
TIMEOUT = httpx2.Timeout(90.0, connect=15.0)
# The client obeys any Retry-After, five times over; a Hub that says 3600 would hold the command for five hours.
LONGEST_WAIT = 120.0
# The client asks again without a pause, for ever, while another creation by the same user is in progress.
MOST_CREATE_ATTEMPTS = 10

# What the client raises for a failure on the way: its own errors are OSErrors, large files fail with RuntimeErrors,
# unusable answers with ValueErrors (JSON) and LookupErrors.
FAILURES = (httpx2.HTTPError, OSError, RuntimeError, ValueError, LookupError)

_AGAIN = "run the same command again, it completes what is missing"
_ADVICE = {
    400: "Correct what the Hub complains about and run the same command again.",
    401: "The token is missing, wrong or expired: log in with `hf auth login` or set HF_TOKEN to a token with write "
    f"access, then {_AGAIN}.",
    403: "This token may not do that: take a token with write access to the repository (https://huggingface.co/settings/"
    f"tokens), then {_AGAIN}.",
    404: "The repository or revision does not exist or this token may not see it: check the repository id and the "
    f"token, then {_AGAIN}.",
    409: f"Something else is changing the repository: wait a minute, then {_AGAIN}.",
    412: "Somebody else pushed in the meantime, and nothing of theirs was overwritten: look at their commit, then run "
    "the same command again to put this release on top of it.",
    413: "The upload is larger than the Hub accepts: split the weights into smaller shards or leave large files out, "
    "then run the same command again.",
}


def find_token(api: HfApi) -> str:
    """The token that calls of `api` would send.

    Raises:
        Ham10000Error: If there is none.
    """
    token: str | bool | None = api.token
    if token is None or token is True:
        try:
            token = get_token()
        except (OIDCError, *FAILURES) as error:
            raise Ham10000Error(f"No token for the Hub: {redact(str(error), None)}") from None
    if not token:
        raise Ham10000Error(
            "No token for the Hub was found, and publishing needs one: log in with `hf auth login`, or set HF_TOKEN "
            "to a token with write access (https://huggingface.co/settings/tokens)."
        )
    return str(token).strip()


def redact(text: str, token: str | None) -> str:
    """Replaces the token, and whatever looks like one, by asterisks."""
    if token:
        text = text.replace(token, "***")
    text = re.sub(r"hf_(?:jwt|oauth)_[A-Za-z0-9_.\-]+|hf_[A-Za-z0-9]{16,}", "hf_***", text)
    return re.sub(r"(?i)\b(bearer\s+)[^\s\"')]+", r"\1***", text)


class Traffic:
    """Watches the client's requests and answers, and ends waits that would take too long."""

    def __init__(self) -> None:
        self.commit_sent = False
        self.last_status: int | None = None
        self.waited = 0.0
        self.create_attempts = 0

    def on_request(self, request: httpx2.Request) -> None:
        """Puts a timeout where there is none, and notes when a commit leaves."""
        if request.extensions.get("timeout", {}).get("read") is None:
            request.extensions["timeout"] = TIMEOUT.as_dict()
        self.commit_sent |= request.method == "POST" and "/commit/" in request.url.path

    def on_response(self, response: httpx2.Response) -> None:
        """Raises the client's own error at once where the client would wait or ask again for too long."""
        self.last_status = response.status_code
        if response.status_code in (408, 429) or response.status_code >= 500:
            self.waited += retry_after(response) or 0.0
            if self.waited > LONGEST_WAIT:
                hf_raise_for_status(response)
        if response.status_code == 409 and response.request.url.path.endswith("/repos/create"):
            self.create_attempts += 1
            if self.create_attempts >= MOST_CREATE_ATTEMPTS:
                hf_raise_for_status(response)


@contextmanager
def bounded_client() -> Iterator[Traffic]:
    """Within it, all calls of huggingface_hub have timeouts and end within minutes.

    A call that the client repeats ends after six attempts: 23 s of pauses, or `LONGEST_WAIT` in all where the Hub asks
    for longer ones.

    Yields:
        What went over the wire.
    """
    previous = _http._GLOBAL_CLIENT_FACTORY  # may be the user's own, with a proxy or certificates
    traffic = Traffic()

    def factory() -> httpx2.Client:
        client = previous()
        hooks = client.event_hooks
        hooks["request"].append(traffic.on_request)
        hooks["response"].append(traffic.on_response)
        client.event_hooks = hooks
        return client

    set_client_factory(factory)
    try:
        yield traffic
    finally:
        set_client_factory(previous)


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds the Hub asks to wait, from `Retry-After` or its `ratelimit` header."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


@dataclass(frozen=True)
class Failure:
    """A failed call in words.

    Attributes:
        status: HTTP status, or None where no answer came.
        what: What happened, without a full stop.
        advice: What to do, as sentences.
        uncertain: Whether the Hub may have done what was asked nevertheless.
    """

    status: int | None
    what: str
    advice: str
    uncertain: bool


def explain(error: BaseException, token: str | None, traffic: Traffic) -> Failure:
    """Puts an exception of the client into words that hold no token.

    Args:
        error: What the client raised, one of `FAILURES`.
        token: The token to keep out of the words.
        traffic: What went over the wire so far.
    """
    cause: BaseException = error
    while not isinstance(cause, httpx2.HTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__  # an error of an upload is wrapped into one that names the file
    outer = "" if cause is error else redact(str(error).split("\n")[0], token).rstrip(".") + ": "
    words = redact(" ".join(str(cause).split()), token)[:300].rstrip(".") or type(cause).__name__
    check = f"Check the network, then {_AGAIN}."
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        said = redact(" ".join((cause.server_message or "").split()), token)[:300]
        what = f"{outer}the Hub answered {status} {cause.response.reason_phrase}" + (f" ({said})" if said else "")
        return Failure(status, what, _advice(status, retry_after(cause.response)), status >= 500 or status == 408)
    if isinstance(cause, OfflineModeIsEnabled):
        return Failure(None, "HF_HUB_OFFLINE is set", "Unset it and run the same command again.", False)
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Failure(None, f"{outer}no connection to the Hub ({words})", check, False)
    if isinstance(cause, httpx2.TimeoutException):
        return Failure(None, f"{outer}the Hub did not answer in time", f"Wait a few minutes, then {_AGAIN}.", True)
    # The others: of two uploads at once, the one that meets a dead Hub first closes the client they share, and sets it
    # to None a moment later.
    closed = ("client has been closed", "'NoneType' object has no attribute 'request'")
    if isinstance(cause, httpx2.HTTPError) or any(text in words for text in closed):
        return Failure(None, f"{outer}the connection broke ({words})", check, True)
    if isinstance(cause, json.JSONDecodeError):
        what = (
            f"the Hub's answer (status {traffic.last_status}) is not JSON; a proxy or login page may stand in between"
        )
        return Failure(traffic.last_status, what, _advice(traffic.last_status or 500, None), True)
    # hf_xet, through which large files go where it is installed, has a client of its own and says all in one string.
    if status_in_words := re.search(r"HTTP status \w+ error \((\d{3})", words):
        return Failure(int(status_in_words[1]), words, _advice(int(status_in_words[1]), None), True)
    return Failure(None, words, check if "network" in words.lower() else f"Correct that, then {_AGAIN}.", True)


def _advice(status: int, wait: float | None) -> str:
    if status == 429:
        pause = "a few minutes" if wait is None else f"{wait:.0f} seconds"
        return f"The Hub limits the rate of requests: wait {pause}, then {_AGAIN}."
    if status in _ADVICE:
        return _ADVICE[status]
    return f"This is a fault of the Hub: wait a few minutes (https://status.huggingface.co), then {_AGAIN}."


__all__ = ["FAILURES", "Failure", "Traffic", "bounded_client", "explain", "find_token", "redact", "retry_after"]
