"""Notify: tells a chat that a run is over: Slack, Discord, Teams, ntfy, or whatever else takes JSON.

Nothing of the address but its host is ever said: whoever knows the rest may write to the chat.
"""

import base64
import html
import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from orchestrator.documents import document

_TIMEOUT_S = 5.0  # for an answer; all together take twice as much at most
_DISCORD_CHARACTERS, _NTFY_BYTES = 2000, 4000  # longer ones are refused, or become an attachment


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Urllib would follow with a GET, which tells nobody anything."""

    def redirect_request(self, *_: Any) -> None:
        return None


def tell(url: str, lines: Sequence[str], facts: Mapping[str, Any]) -> str | None:
    """Post what is to be told. Returns why that failed, in a few words; None if it did not. Never raises.

    lines: for people. facts: for programs: see docs/json.md, kind notice.
    """
    ended: list[str | None] = []
    thread = threading.Thread(target=lambda: ended.append(_post(url, lines, facts)), daemon=True)
    thread.start()
    thread.join(2 * _TIMEOUT_S)  # looking up a name, or an answer that drips, has no other limit
    why = ended[0] if ended else "gave no answer in time"
    return why and f"{host(url)} {why}"


def host(url: str) -> str:
    """What may be said of an address; nothing, where it has no host."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _post(url: str, lines: Sequence[str], facts: Mapping[str, Any]) -> str | None:
    try:
        place = urlsplit(url)
        kind, data = encode(place, lines, facts)
        headers = {"Content-Type": kind, "User-Agent": "batch-orchestrator"}
        user, at, where = place.netloc.rpartition("@")
        if at:
            headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
        address = urlunsplit(place._replace(netloc=where))
        request = urllib.request.Request(address, data, headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return f"answered {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        # the message of some of these has the whole address
        cause = getattr(error, "reason", error)
        return f"cannot be reached ({getattr(cause, 'strerror', None) or type(cause).__name__})"


def encode(place: SplitResult, lines: Sequence[str], facts: Mapping[str, Any]) -> tuple[str, bytes]:
    """Type and body of what the host takes. Pure."""
    name, text = place.hostname or "", "\n".join(lines)
    json_of: Any
    if name.startswith("ntfy."):
        return "text/plain; charset=utf-8", text.encode()[:_NTFY_BYTES].decode(errors="ignore").encode()
    if name in ("hooks.slack.com", "hooks.slack-gov.com"):
        json_of = {"text": html.escape(text, quote=False)}
    elif name.removeprefix("ptb.").removeprefix("canary.") in ("discord.com", "discordapp.com"):
        json_of = {"content": text[:_DISCORD_CHARACTERS], "allowed_mentions": {"parse": []}}
    elif name.endswith((".webhook.office.com", ".logic.azure.com", ".api.powerplatform.com")):
        blocks = [{"type": "TextBlock", "text": line, "wrap": True} for line in lines]
        card = {"type": "AdaptiveCard", "version": "1.4", "body": blocks}
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        json_of = {"type": "message", "attachments": [attachment]}
    else:
        return "application/json", document("notice", **facts, text=text).encode()
    return "application/json", json.dumps(json_of).encode()
