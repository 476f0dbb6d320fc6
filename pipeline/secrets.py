"""Passwords, which belong in no message, log, tag or environment that others read."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from typing import Any
from urllib.parse import unquote

USER_INFO = re.compile(
    r"""(://)            # the beginning of an address
    (?: [^/\s'"?#]*@     # user and password, such as in http://user:password@host
      | [^/\s'"@:]+ : (?!\d+[/?\#]) [^\s'"@]*@  # the same with / in the password, as databases take it
    )""",
    re.VERBOSE,
)

QUERY = re.compile(r"([?&](?:password|passwd|pwd|token|access_token|secret|X-Amz-\w+)=)[^&\s'\"]+", re.IGNORECASE)
"""A secret among the options of an address, such as in postgresql://host/name?password=."""

ADDRESS_VARIABLES = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
"""Environment variables whose addresses may have a password."""

SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Environment variables that are secrets."""

LEAST_SECRET = 8
"""Characters of a secret that is hidden wherever it stands; a shorter one may be a word of the message."""


def hidden(text: str) -> str:
    """Return a text with `***` for the user and the password of each address in it, and for this process's secrets."""
    text = QUERY.sub(r"\1***", USER_INFO.sub(r"\1***@", text))
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def without_user_info(address: str) -> str:
    """Return an address without a user and a password."""
    return USER_INFO.sub(r"\1", address)


def hide_in_output() -> None:
    """Hide passwords in all that this process logs, and in the tracebacks of uncaught exceptions.

    Messages of other packages name addresses in full.
    """
    if logging.getLogRecordFactory() is not _hidden_record:
        logging.setLogRecordFactory(_hidden_record)
    sys.excepthook = _print_hidden
    threading.excepthook = _print_hidden_of_thread


def _secrets() -> list[str]:
    """Return the secrets in the environment, as they are written in addresses and as they are meant."""
    written = [os.environ.get(name, "") for name in SECRET_VARIABLES]
    for name in ADDRESS_VARIABLES:
        found = USER_INFO.search(os.environ.get(name, ""))
        written.append(found[0].removeprefix("://").removesuffix("@").partition(":")[2] if found else "")
    both = {form for secret in written for form in (secret, unquote(secret))}
    return sorted((secret for secret in both if len(secret) >= LEAST_SECRET), key=len, reverse=True)


def _hidden_record(*arguments: Any, **more: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **more)
    try:
        record.msg, record.args = hidden(record.getMessage()), ()
    except (TypeError, ValueError):  # a wrong call of a logger, which the handler reports
        return record
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = hidden("".join(traceback.format_exception(record.exc_info[1])).rstrip())
    return record


def _print_hidden(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    print(hidden("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _print_hidden_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        _print_hidden(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
