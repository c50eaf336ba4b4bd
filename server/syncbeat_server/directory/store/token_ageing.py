"""Ages registration tokens that are not refreshed: stale, then pruned, then gone."""

from __future__ import annotations

from syncbeat_server.storage.postgres.database import Connection


async def age_tokens(conn: Connection, limit: int) -> int:
    """Move up to `limit` tokens to the state that their age calls for, and return their number.

    Tokens of devices that were not heard of for 30 days are STALE, and ACTIVE again when they are. After 270 days FCM
    itself gives up Android's ("Best practices for registration token management"), and ours are PRUNED, which their
    device undoes by a call within 30 days; then they are gone. iOS tokens do not end that way, and stay STALE.
    """
    rows = await conn.fetch(
        """WITH aged AS (
               SELECT app_id, user_id, device_id, token_state,
                      CASE WHEN token_state = 'PRUNED' AND heard <= token_state_at
                                AND token_state_at < syncbeat_now() - interval '30 days' THEN 'DEAD'
                           WHEN token_state = 'PRUNED' AND heard <= token_state_at THEN 'PRUNED'
                           WHEN heard > syncbeat_now() - interval '30 days' THEN 'ACTIVE'
                           WHEN heard < syncbeat_now() - interval '270 days' AND platform <> 'IOS' THEN 'PRUNED'
                           ELSE 'STALE' END AS becomes
               FROM (SELECT *, greatest(token_registered_at, activity_at) AS heard FROM devices
                     WHERE token_state IN ('ACTIVE', 'STALE', 'PRUNED')
                       AND token_registered_at < syncbeat_now() - interval '30 days') old
           ), due AS (
               SELECT * FROM aged WHERE becomes <> token_state LIMIT $1
           ), free AS MATERIALIZED (
               -- A locked device is in use, or about to go: it is left to the next time.
               SELECT v.app_id, v.user_id, v.device_id, due.becomes
               FROM devices v JOIN due USING (app_id, user_id, device_id, token_state)
               FOR NO KEY UPDATE OF v SKIP LOCKED)
           UPDATE devices v SET token_state = free.becomes, token_state_at = syncbeat_now(),
                  registration_token = CASE WHEN free.becomes = 'DEAD' THEN NULL ELSE v.registration_token END,
                  token_digest = CASE WHEN free.becomes = 'DEAD' THEN NULL ELSE v.token_digest END
           FROM free WHERE (v.app_id, v.user_id, v.device_id) = (free.app_id, free.user_id, free.device_id)
           RETURNING 1 AS moved""",
        limit,
    )
    return len(rows)
