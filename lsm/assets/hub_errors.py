"""What the Hugging Face hub and its library answer with → one line for a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lsm.errors import UserError


@contextmanager
def hub_explained(repository: str, *, absent: str = "") -> Iterator[None]:
    """Turn the hub's refusals and a missing network into a `UserError` that names the repository.

    Args:
        absent: said where the hub knows no such repository, or hides it.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no local path and no hub id (owner/name)") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(f"{repository}: the hub cannot be reached") from error
    except RevisionNotFoundError as error:
        raise UserError(f"the hub's {repository} has no such branch, tag or commit; see its page for those that it has") from error
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise UserError(f"the hub refuses {repository}: {str(error).splitlines()[0]}{absent and f'; {absent}'}") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub refuses {repository}: {str(error).splitlines()[0]}") from error
    except connection_errors() as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # of this machine's disk
        raise UserError(f"{repository}: the hub cannot be reached ({' '.join(str(error).split())})") from error


def connection_errors() -> tuple[type[Exception], ...]:
    """What the hub's library lets through when there is no connection; its HTTP client is httpx or its successor."""
    from huggingface_hub.utils import get_session

    client = sys.modules[type(get_session()).__module__.partition(".")[0]]
    return (OSError, client.TransportError) if hasattr(client, "TransportError") else (OSError,)
