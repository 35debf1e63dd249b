"""Figures of AWS that lie with a stack: `smpi calibrate` stores them, jobs and commands use them.

They are one object of the stack's bucket, which ranks may not write (`stack/bucket.py`).  They
hold until the stack is changed: a deploy may bring other memory, another architecture or another
package.
"""

from __future__ import annotations

from collections.abc import Callable

from serverless_mpi.aws import figures as files
from serverless_mpi.aws.limits import Figures
from serverless_mpi.errors import UsageError
from serverless_mpi.stack import bucket
from serverless_mpi.stack.stack import Stack, explained

STACK = "stack"  # instead of a file's name: those that are stored with the stack


def read(stack: Stack) -> Figures | None:
    """Return the figures that lie with a stack, whether they still hold or not.

    Parameters
    ----------
    stack
        Stack whose bucket is read.

    Returns
    -------
    Figures or None
        None if none were stored.

    Raises
    ------
    UsageError
        What lies there is not a file of figures, or may not be read.
    """
    s3 = stack.client("s3")
    with explained("read the stack's figures", stack.endpoint, stack.region):
        try:
            answer = s3.get_object(Bucket=stack.bucket, Key=bucket.FIGURES)
        except s3.exceptions.NoSuchKey:
            return None
        return files.from_json(answer["Body"].read(), f"{bucket.FIGURES} of stack {stack.name}")


def write(stack: Stack, figures: Figures) -> None:
    """Store figures with a stack, in place of earlier ones.

    Parameters
    ----------
    stack
        Stack on which they were measured.
    figures
        The figures.

    Raises
    ------
    UsageError, ChannelError
        S3 refused to store them, or cannot be reached.
    """
    with explained("store the stack's figures", stack.endpoint, stack.region):
        stack.client("s3").put_object(
            Bucket=stack.bucket, Key=bucket.FIGURES, Body=files.to_json(figures).encode()
        )


def trouble(stack: Stack, figures: Figures) -> str | None:
    """Return why figures do not hold for a stack.

    Parameters
    ----------
    stack
        Stack for which they are to be used.
    figures
        Figures, as `read` returned them or from a file.

    Returns
    -------
    str or None
        A reason in words; None if they hold.
    """
    return files.trouble(figures, stack.region, stack.name, stack.changed)


def of_job(word: str | None, stack: Stack, say: Callable[[str], None]) -> Figures | None:
    """Return the figures of a job on a stack.

    Parameters
    ----------
    word
        Of `--figures`: a file, or STACK; None for the stack's if they hold.
    stack
        Where the job runs.
    say
        Gets one line if stored figures are not used.

    Returns
    -------
    Figures or None
        None for the package's own.

    Raises
    ------
    UsageError
        The figures that were asked for do not exist, or do not hold for the stack.
    """
    if word is None:
        try:
            found = read(stack)
            reason = None if found is None else trouble(stack, found)
        except UsageError as error:  # a job does not need them
            found, reason = None, str(error)
        if reason is not None:
            say(f"the figures of stack {stack.name} are not used: {reason}")
        return None if reason is not None else found
    found = read(stack) if word == STACK else files.load(word)
    if found is None:
        raise UsageError(
            f"--figures {STACK}: stack {stack.name} has none; run `smpi calibrate` first"
        )
    if (reason := trouble(stack, found)) is not None:
        raise UsageError(f"--figures {word}: {reason}")
    return found
