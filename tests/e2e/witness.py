"""Gathers the history of a stage: what its database saw, and what its fake FCM took."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from syncbeat_devtools.demo.stage import Stage
from tests.support.databases import DatabaseUrls
from tests.support.delivery_history import Arrival, Change, History

_TRIGGER = """
CREATE TABLE history (n bigserial, delivery_id uuid, before text, after text, lease_before uuid, lease_after uuid,
                      process text, overdue boolean);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO history (delivery_id, before, after, lease_before, lease_after, process, overdue)
    VALUES (OLD.delivery_id, OLD.state, NEW.state, OLD.lease_token, NEW.lease_token,
            current_setting('application_name'), coalesce(OLD.lease_until < syncbeat_now(), false));
    RETURN NULL;
END $$;
CREATE TRIGGER note_change AFTER UPDATE ON deliveries FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION note_change();
"""


async def watch_database(urls: DatabaseUrls) -> None:
    """Have the database note every change of a delivery's state, and who made it."""
    conn = await asyncpg.connect(urls.owner_url)
    try:
        await conn.execute(_TRIGGER)
    finally:
        await conn.close()


async def last_to_claim(urls: DatabaseUrls) -> int:
    """The process that claimed last and holds what it claimed; 0 for none."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        name = await conn.fetchval(
            """SELECT process FROM history h JOIN deliveries d USING (delivery_id)
               WHERE h.after = 'IN_FLIGHT' AND d.state = 'IN_FLIGHT' ORDER BY h.n DESC LIMIT 1"""
        )
    finally:
        await conn.close()
    return int(name.split()[-1]) if name else 0


async def history_of(stage: Stage, urls: DatabaseUrls, accepted: Mapping[str, int]) -> History:
    """Everything that is known by now; `accepted` is what the callers were promised."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        changes = await conn.fetch("SELECT * FROM history ORDER BY n")
        final = await conn.fetch("SELECT delivery_id, notification_id, state FROM deliveries")
    finally:
        await conn.close()
    return History(
        accepted=accepted,
        final={str(row["delivery_id"]): (str(row["notification_id"]), row["state"]) for row in final},
        changes=[
            Change(
                str(row["delivery_id"]),
                row["before"],
                row["after"],
                None if row["lease_before"] is None else str(row["lease_before"]),
                None if row["lease_after"] is None else str(row["lease_after"]),
                row["process"],
                row["overdue"],
            )
            for row in changes
        ],
        arrivals=[
            Arrival(record["message"]["data"]["delivery_id"], record["target"], record["effect"])
            for record in await stage.fake_fcm.all_deliveries()
        ],
    )
