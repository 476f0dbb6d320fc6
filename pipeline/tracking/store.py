"""The MLflow store: its address, a client for it, and which of its errors are outages."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipeline.errors import UserError
from pipeline.secrets import hidden, without_user_info
from pipeline.tracking.mlflow_private import NOISY_LOGGERS
from pipeline.workspace import workspace

# MLflow takes seconds to import, and most of what imports this module only needs the address.
if TYPE_CHECKING:
    from mlflow import MlflowClient

ADDRESS_VARIABLE = "MLFLOW_TRACKING_URI"
RETRIES_VARIABLE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"

RETRIES = 1
"""Retries inside MLflow's client, unless the user sets them. The outbox retries for as long as it takes."""

REQUEST_SECONDS = 30
"""How long a server may take for one request, in seconds, unless the user sets it."""

FIRST_REQUEST_SECONDS = 5
"""The same for the first request of a stage, so that a wrong address is noticed soon."""

DATABASE_TIMEOUTS = {
    "postgresql": {"connect_timeout": FIRST_REQUEST_SECONDS},
    "mysql": {"connect_timeout": FIRST_REQUEST_SECONDS, "read_timeout": FIRST_REQUEST_SECONDS},
    "mssql": {"timeout": FIRST_REQUEST_SECONDS},
}
"""Arguments of the drivers of databases on servers by which they give up soon."""

REASON_LENGTH = 200

RETRYABLE_STATUS = (401, 403, 408, 429)
"""Status codes below 500 that may pass: credentials that have expired, too many requests."""

CLOUD_PACKAGES = ("azure", "boto3", "botocore", "google", "s3fs", "urllib3")
"""Packages that store artifacts for MLflow and whose exceptions are outages."""


def tracking_uri() -> str:
    """Return the address of the store; that of an SQLite file is absolute, so that it is the same from any folder.

    Raises:
        UserError: the address cannot be that of the file that is meant.
    """
    uri = os.environ.get(ADDRESS_VARIABLE) or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:///"):
        return uri
    project = str(workspace())
    if "?" in project or unquote(project) != project:
        raise UserError(
            f"MLflow cannot keep its store in {project}: in its address ? begins options, and %20 is a space\n"
            "give the folder another name, or set MLFLOW_TRACKING_URI to that of a server"
        )
    path = Path(project, uri.removeprefix("sqlite:///"))
    return f"sqlite:///{path}"


def client_of(uri: str) -> MlflowClient:
    """Return a client of the store at the address, which gives up soon when the store does not answer."""
    # MLflow reads these when it is imported. Without them it reports its use over the internet.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault(RETRIES_VARIABLE, str(RETRIES))
    os.environ.setdefault(TIMEOUT_VARIABLE, str(REQUEST_SECONDS))
    if without_user_info(uri) != uri:  # MLflow prints the address of each run that ends, password and all
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri, registry_uri=uri)


def open_store() -> MlflowClient:
    """Return a client of the store that the environment names.

    Raises:
        UserError: the store does not answer, or its address cannot be one.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = tracking_uri()
    try:
        _connect_once(uri)
        client = client_of(uri)
        with _timeout_of_first_request():
            client.search_experiments(max_results=1)
    except ModuleNotFoundError as error:
        raise UserError(
            f"MLflow cannot use its store (MLFLOW_TRACKING_URI) {uri}:\nthe package {error.name} is missing; "
            "for postgresql it is psycopg[binary], for postgresql+psycopg2 psycopg2-binary, for mysql+pymysql pymysql"
        ) from error
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise unusable(uri, error) from error
    return client


def require_store() -> None:
    """Ask the store that the environment names whether it answers; the file that is used else needs no asking.

    Raises:
        UserError: it does not answer within seconds, or its address cannot be one.
    """
    tracking_uri()  # raises UserError
    if os.environ.get(ADDRESS_VARIABLE):
        open_store()


def _connect_once(uri: str) -> None:
    """Connect to the server of a database, because MLflow's client would try for minutes."""
    options = DATABASE_TIMEOUTS.get(uri.partition(":")[0].partition("+")[0])
    if options is not None:
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri, connect_args=options)
        engine.connect().close()
        engine.dispose()


def unusable(uri: str, error: Exception) -> UserError:
    """Return the error that names a store and why it cannot be used."""
    return UserError(f"MLflow cannot use its store (MLFLOW_TRACKING_URI) {uri}:\n{str(error).strip().splitlines()[0]}")


def is_outage(error: Exception) -> bool:
    """Return whether the store may accept the same request later: it did not answer, or could not work."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        return _may_pass(error.get_http_status_code())
    if isinstance(error, RequestException):
        return error.response is None or _may_pass(error.response.status_code)
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return type(error).__module__.partition(".")[0] in CLOUD_PACKAGES


def reason_of(error: Exception) -> str:
    """Return why a store does not answer, in one short line."""
    text = str(error).strip() or type(error).__name__
    cause = re.search(r"\[Errno -?\d+\] ([^'\")\n]+)|Error\) ([^\n]+)", text)  # of the system, of a database
    return hidden((cause[1] or cause[2]) if cause else text.splitlines()[0][:REASON_LENGTH])


def _may_pass(status: int) -> bool:
    return status >= 500 or status in RETRYABLE_STATUS


@contextmanager
def _timeout_of_first_request() -> Iterator[None]:
    if os.environ[TIMEOUT_VARIABLE] != str(REQUEST_SECONDS):  # the user has set it
        yield
        return
    os.environ[TIMEOUT_VARIABLE] = str(FIRST_REQUEST_SECONDS)
    try:
        yield
    finally:
        os.environ[TIMEOUT_VARIABLE] = str(REQUEST_SECONDS)
