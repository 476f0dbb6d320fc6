"""Exceptions that are not failures of the code: the user can correct something, or has asked the process to end."""

from __future__ import annotations

import errno

from pipeline.secrets import hidden

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk or an exhausted quota."""

NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error numbers of missing permissions and of read-only disks."""


class UserError(Exception):
    """Error outside the code: in a setting, a file, an image folder.

    The message has at most three lines; it names the thing, its value and what would be right. Passwords in addresses
    are hidden. The command line prints it without a traceback and exits with status 1.
    """

    def __init__(self, message: str):
        super().__init__(hidden(message))


class Terminated(KeyboardInterrupt):
    """Request to end by SIGTERM, as a scheduler sends it. What is finished is kept; the exit status is 143."""
