"""What `--figures` names, for commands that forecast: a file, or the figures of a stack."""

from __future__ import annotations

from serverless_mpi.aws import figures as files
from serverless_mpi.aws.limits import Figures
from serverless_mpi.errors import UsageError
from serverless_mpi.stack import stored_figures
from serverless_mpi.stack.stack import Stack, own_region

STACK = stored_figures.STACK


def chosen(word: str | None, stack: str, endpoint: str | None, region: str) -> Figures | None:
    """Return the figures that `--figures` names; None without the option.

    Parameters
    ----------
    word
        A file, or "stack".
    stack, endpoint
        Where the figures lie if the word is "stack".
    region
        Region of the forecast; "" for that of the figures.

    Raises
    ------
    UsageError
        They cannot be read, are of another region, or are older than the stack.
    """
    if word is None:
        return None
    if word == STACK:
        found = Stack.find(stack, endpoint, own_region(region, endpoint))
        return stored_figures.of_job(word, found, lambda line: None)
    figures = files.load(word)
    if region and (reason := files.trouble(figures, region)) is not None:
        raise UsageError(f"--figures {word}: {reason}")
    return figures
