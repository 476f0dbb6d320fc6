"""The exceptions that are not failures of the code: the user can mend this, or somebody wants it to end."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the code is wrong: a setting, a file, an image folder.

    The message has at most three lines; it names the thing, its value and what would be right. The command
    line prints it without a traceback and exits with status 1.
    """


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as a scheduler does, and has kept what it had."""
