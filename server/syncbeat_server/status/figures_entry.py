"""Enters figures from outside, which no process can measure: complaints, tickets, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from syncbeat_server.audit.model import DEPLOYMENT, AuditAction, app_subject
from syncbeat_server.audit.record import record
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.status.model import FigureRule
from syncbeat_server.status.store import slo_figures
from syncbeat_server.storage.postgres.database import Database


async def put_figure(database: Database, rules: Sequence[FigureRule], name: str, value: float) -> None:
    """Write the newest value of a figure that the settings name, with an entry of the audit log: it turns verdicts.

    Raises:
        ConfigurationError: no setting names it, or it is no finite number.
        DependencyDown: PostgreSQL does not take it.
    """
    if not math.isfinite(value):
        raise ConfigurationError(f"slo put: {name}: want a finite number")
    if name not in {rule.name for rule in rules}:
        known = ", ".join(rule.name for rule in rules) or "none"
        raise ConfigurationError(f"slo put: {name[:64]!r} is not in SYNCBEAT_SLO_FIGURES, which names {known}")
    async with database.transaction() as conn:
        await slo_figures.put(conn, name, value)
        subject = app_subject(DEPLOYMENT)
        await record(conn, DEPLOYMENT, AuditAction.FIGURE_PUT, subject, name=name, value=f"{value:.12g}")
