"""Command `ghn doctor`: what is wrong before a run, in one line each."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.console import Finding, print_findings
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.tracking.store import require_store
from pipeline.workspace import scm_hint


def doctor(params: Params, examine_nodes: Callable[[Params], list[Finding]]) -> None:
    """Print what was looked at on all nodes, in the workspace and of MLflow.

    Raises:
        UserError: something is wrong.
    """
    findings = [*_examined_nodes(params, examine_nodes), _tracking(), Finding("git", scm_hint())]
    if problems := print_findings(findings):
        raise UserError(f"{problems} things are wrong" if problems > 1 else "one thing is wrong")


def _examined_nodes(params: Params, examine_nodes: Callable[[Params], list[Finding]]) -> list[Finding]:
    try:
        return examine_nodes(params)
    except UserError as error:
        return [Finding("cluster", _one_line(error))]


def _tracking() -> Finding:
    try:
        require_store()
    except UserError as error:
        return Finding("MLflow", _one_line(error))
    return Finding("MLflow", None)


def _one_line(error: UserError) -> str:
    return "; ".join(str(error).splitlines())
