"""The one exception that means: the user can mend this."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the code is wrong: a setting, a file, an image folder.

    The message has at most three lines; it names the thing, its value and what would be right. The command
    line prints it without a traceback and exits with status 1.
    """
