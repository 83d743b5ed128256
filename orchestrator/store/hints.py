"""Hints: the failure of an object store -> one line that says what to do. Pure."""

from __future__ import annotations

import re

from orchestrator.store.interface import Missing, StoreError

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_KEYS_OF = {  # by scheme: whose credentials are not there, and what to do
    "s3": ("AWS", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"),
    "gs": (
        "Google",
        "set GOOGLE_APPLICATION_CREDENTIALS to a key's file, or run `gcloud auth application-default login`",
    ),
    "az": ("Azure", "set AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN"),
}
_NO_BUCKET = "correct the bucket's name, or create the bucket"
_DENIED = "these credentials must be allowed to list the bucket and to get, put and delete its objects"
_ONE_DENIED = "these credentials must be allowed to get it, and to decrypt it where the bucket encrypts with a KMS key"
_ARCHIVED = "it is archived (Glacier): restore it, or leave it out"
_OWN_KEY = "it is encrypted with a key that each reader must bring (SSE-C), which is not supported: copy it without"
_NOT_PUBLIC = {"AccessDenied", "NoAuthenticationInformation", "PublicAccessNotPermitted", "ResourceNotFound"}  # codes
_FULL = "the store is full: free space in it, or have its quota raised"
_EXPIRED = "the credentials have expired: renew them (`aws sso login`, or new keys) and run the same command again"
HINTS = {  # by the store's error code, or else by HTTP status
    "NoSuchBucket": _NO_BUCKET,
    "ContainerNotFound": _NO_BUCKET,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestTimeTooSkewed": "set this machine's clock",
    "AccessDenied": _DENIED,
    "InvalidObjectState": _ARCHIVED,
    "QuotaExceeded": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "301": "the bucket is in another region: set AWS_REGION to it",
    "400": "set AWS_REGION to the bucket's region, and check the credentials",
    "401": "check the credentials",
    "403": f"renew the credentials if they have expired; {_DENIED}",
    "404": _NO_BUCKET,
    "503": "the store is overloaded: run the same command again later",
    "507": _FULL,
}


def one_line(text: str) -> str:
    """The first 300 characters of an error's first line, with web addresses stripped of user and query. Pure."""
    first = text.strip().partition("\n")[0]
    return re.sub(r"(https?://)(?:[^\s/@]*@)?([^\s?]*)(?:\?\S*)?", r"\1\2", first)[:300]


def no_keys(uri: str, so: str = "") -> str:
    """That there are no credentials for this address, and how to give some. Pure."""
    whose, how = _KEYS_OF[uri.partition("://")[0]]
    return f"there are no {whose} credentials{so}: {how}"


def explain(error: Exception, where: str, action: str, endpoint: str | None = None, signed: bool = True) -> StoreError:
    """Turn the failure of an object store into one line with a hint. Pure.

    where: Address of the object or store. endpoint: Where requests go, unless that is the provider's own endpoint.
    signed: False where requests are sent without credentials, for want of any.
    """
    text = str(error)
    code = re.search(r"<Code>([\w.]+)</Code>", text)
    message = re.search(r"<Message>([^<]*)</Message>", text)
    status = re.search(r"status code: (\d{3})", text)
    missing = code[1] in ("NoSuchKey", "BlobNotFound") if code else isinstance(error, FileNotFoundError)
    if missing:
        return Missing(f"{where}: {action} failed: there is no such object")
    hint = HINTS.get(code[1] if code else "") or HINTS.get(status[1] if status else "") or "run the same command again"
    denied = code[1] == "AccessDenied" if code else status is not None and status[1] in ("401", "403")
    if not signed and (denied or (code and code[1] in _NOT_PUBLIC)):
        hint = no_keys(where, ", so only what is public can be read")
    elif denied and action == "read":
        hint = _ONE_DENIED
    elif message and "Server Side Encryption" in message[1]:
        hint = _OWN_KEY
    if code:
        cause = one_line(f"{code[1]}: {message[1]}" if message else code[1]).rstrip(".")
    elif "without LOCATION" in text:
        cause, hint = "the request was sent on to nowhere", HINTS["301"]
    elif provider := re.search(r"credential provider: (.*)", text):
        cause, hint = f"no credentials: {one_line(provider[1])}", "renew the credentials and run the same command again"
    elif status:
        cause = f"HTTP status {status[1]}"
    elif re.search(r"error sending request|timed? ?out|dns error", text, re.IGNORECASE):
        cause = one_line(f"no answer from {endpoint or 'the store'}")
        hint = "check the network" + (" and AWS_ENDPOINT_URL" if endpoint else "")
    elif "response body error" in text:
        cause = one_line(f"the answer from {endpoint or 'the store'} broke off")
        hint = "check the network, and run the same command again"
    else:
        cause = one_line(text)
    return StoreError(f"{where}: {action} failed: {cause}; {hint}")
