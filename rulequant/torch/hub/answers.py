"""What the Hub answers when it does not give a file, in words: what is the matter, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rulequant.errors import ModelError, RulequantError
from rulequant.torch.checkpoint.files import printable

__all__ = ["GOES_ON", "TransportError", "explained", "status_of"]

GOES_ON = "running again goes on where it stopped"

# The HTTP library's own base class, which differs between releases of huggingface_hub.
TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Around calls of huggingface_hub.

    Raises:
        ModelError: in place of whatever the library raises for an answer, or for none.
    """
    try:
        yield
    except RulequantError:
        raise
    except Exception as error:
        found = _explained(error, printable(repo_id), revision)
        if found is None:
            raise
        raise found from error


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an answer; None where there was none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _explained(error: Exception, repo_id: str, revision: str | None) -> ModelError | None:
    if isinstance(error, HFValidationError):
        return ModelError(f"{repo_id} is no folder here, and cannot be the id of a model on the Hub")
    if isinstance(error, GatedRepoError | RepositoryNotFoundError):
        return _not_yours(error, repo_id)
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"{repo_id} has no revision `{printable(revision)}`",
            remedy=f"give a branch, a tag or a commit: {_page(repo_id)}/tree/main lists them",
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return _not_cached(error, repo_id)
    if isinstance(error, EntryNotFoundError):
        return ModelError(f"{repo_id} lacks a file: {_first_line(error)}", remedy=f"see {_page(repo_id)}/tree/main")
    if isinstance(error, FileMetadataError):
        return ModelError(
            f"{repo_id}: {_first_line(error)}", remedy=f"HF_ENDPOINT is {constants.ENDPOINT}: is it a Hub?"
        )
    found = _http(error, repo_id)
    if found is None and isinstance(error, OSError) and error.errno is None:  # a download of another size, say
        return ModelError(f"{repo_id}: {_first_line(error)}", remedy=f"run it again: {GOES_ON}")
    return found


def _not_yours(error: GatedRepoError | RepositoryNotFoundError, repo_id: str) -> ModelError:
    known = get_token() is not None
    if isinstance(error, GatedRepoError):
        then = "with the account of the token in use" if known else f"then {_LOGIN}"
        return ModelError(
            f"{repo_id} is gated: its owners ask you to accept their terms first",
            remedy=f"ask for access at {_page(repo_id)}, {then}",
        )
    return ModelError(
        f"the Hub has no model {repo_id}, or it is private and not yours to read",
        remedy=f"check the id, and that the token in use may read it: {_page(repo_id)}"
        if known
        else f"check the id; for a private model {_LOGIN}",
    )


def _not_cached(error: BaseException, repo_id: str) -> ModelError | None:
    """Neither the Hub nor its cache on this machine has it: because of what?"""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OfflineModeIsEnabled):
        if isinstance(cause, TransportError):
            return _http(cause, repo_id)
        cause = cause.__cause__
    if cause is not None or constants.HF_HUB_OFFLINE:
        return ModelError(
            f"{repo_id} is no folder here, and not in the Hub's cache {constants.HF_HUB_CACHE}; HF_HUB_OFFLINE is set, "
            "so the Hub was not asked",
            remedy="unset HF_HUB_OFFLINE, or give a folder",
        )
    return ModelError(f"{repo_id}: {_first_line(error)}", remedy=f"HF_ENDPOINT is {constants.ENDPOINT}: is it a Hub?")


def _http(error: BaseException, repo_id: str) -> ModelError | None:
    status = status_of(error)
    if status is None:
        if not isinstance(error, TransportError):
            return None
        return ModelError(
            f"{repo_id}: the Hub ({constants.ENDPOINT}) cannot be reached: {_first_line(error)}",
            remedy=f"check the network, proxies and HF_ENDPOINT; {GOES_ON}, and HF_HUB_OFFLINE=1 takes what is cached",
        )
    if status == 401:
        return ModelError(f"{repo_id}: the Hub does not accept the token in use", remedy=f"{_LOGIN} anew")
    if status == 403:
        return ModelError(
            f"{repo_id}: the token in use may not read it: {_first_line(error)}",
            remedy=f"ask for access at {_page(repo_id)}, or give the token the permission to read it",
        )
    busy = "has too many requests from here" if status == 429 else f"answers with HTTP status {status}"
    return ModelError(f"{repo_id}: the Hub {busy}", remedy=f"wait a while, then run it again: {GOES_ON}")


def _page(repo_id: str) -> str:
    return f"{constants.ENDPOINT}/{repo_id}"


def _first_line(error: BaseException) -> str:
    lines = [each.strip() for each in str(error).split(os.linesep) if each.strip()]
    return printable(lines[0] if lines else type(error).__name__)
