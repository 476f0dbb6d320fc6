"""Passwords in addresses, which belong in no message, log, tag or environment that others read."""

from __future__ import annotations

import re

USER_INFO = re.compile(r"(://)[^/\s'\"?#]*@")
"""The user and the password in an address, such as in http://user:password@host."""


def hidden(text: str) -> str:
    """Return a text with `***` for the user and the password of each address in it."""
    return USER_INFO.sub(r"\1***@", text)


def without_user_info(address: str) -> str:
    """Return an address without a user and a password."""
    return USER_INFO.sub(r"\1", address)
