-- Who did what sensitive thing when, to whom, from where: written in the transaction of what was done.
--
-- Append-only for the service's login. It inserts and reads, and chooses neither the time nor the id of an entry; nothing lets
-- it change one. Old entries are deleted by a function of the owner, which keeps those of the last 30 days whatever it is
-- asked for, and the newest about each app's configuration. Users see nothing of it.

CREATE TABLE audit_entries (
    -- Empty: of all apps.
    app_id      text COLLATE "C" NOT NULL,
    entry_id    uuid NOT NULL DEFAULT syncbeat_uuid7(),
    occurred_at timestamptz NOT NULL DEFAULT syncbeat_now(),
    action      text COLLATE "C" NOT NULL CHECK (octet_length(action) BETWEEN 1 AND 64),
    actor       text COLLATE "C" NOT NULL CHECK (octet_length(actor) BETWEEN 1 AND 256),
    address     text NOT NULL CHECK (octet_length(address) <= 64),
    subject     text COLLATE "C" NOT NULL CHECK (octet_length(subject) BETWEEN 1 AND 320),
    request_id  text NOT NULL CHECK (octet_length(request_id) <= 512),
    -- JSON, as it was written.
    details     text NOT NULL CHECK (octet_length(details) <= 2048),
    PRIMARY KEY (app_id, entry_id)
);
CREATE INDEX audit_entries_by_time ON audit_entries (app_id, occurred_at, entry_id);
CREATE INDEX audit_entries_by_subject ON audit_entries (app_id, subject, occurred_at, entry_id);
CREATE INDEX audit_entries_by_actor ON audit_entries (app_id, actor, occurred_at, entry_id);
CREATE INDEX audit_entries_by_age ON audit_entries (occurred_at, entry_id);
-- What the log says last of the configuration of each app.
CREATE INDEX audit_entries_of_apps ON audit_entries (app_id, occurred_at DESC, entry_id DESC)
    WHERE action IN ('APP_ADDED', 'APP_CHANGED', 'APP_REMOVED');

ALTER TABLE audit_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_entries FORCE ROW LEVEL SECURITY;
CREATE POLICY service_reads ON audit_entries FOR SELECT TO syncbeat_service USING (true);
CREATE POLICY service_appends ON audit_entries FOR INSERT TO syncbeat_service WITH CHECK (true);
-- By the table's owner as it is, and not by name: a restore may give it another one.
CREATE POLICY owner ON audit_entries
    USING (current_user = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'audit_entries'::regclass));
GRANT SELECT, INSERT (app_id, action, actor, address, subject, request_id, details) ON audit_entries TO syncbeat_service;

-- Deletes up to `most` entries that are older than `keep`, from the time `since` on; as storage/retention.py does of other tables.
-- The newest of each app's configuration stays: what is configured now is compared with it.
CREATE FUNCTION syncbeat_delete_old_audit(keep interval, most integer, since timestamptz)
RETURNS TABLE (gone bigint, found bigint, last timestamptz) LANGUAGE sql SECURITY DEFINER AS $$
    WITH old AS MATERIALIZED (
        SELECT e.app_id, e.entry_id, e.occurred_at FROM audit_entries e
        WHERE e.occurred_at >= since AND e.occurred_at < syncbeat_now() - greatest(keep, interval '30 days')
          AND (e.action NOT IN ('APP_ADDED', 'APP_CHANGED', 'APP_REMOVED') OR EXISTS (
              SELECT FROM audit_entries newer
              WHERE newer.app_id = e.app_id AND newer.action IN ('APP_ADDED', 'APP_CHANGED', 'APP_REMOVED')
                AND (newer.occurred_at, newer.entry_id) > (e.occurred_at, e.entry_id)))
        ORDER BY e.occurred_at LIMIT least(most, 1000) FOR UPDATE OF e SKIP LOCKED),
    deleted AS (
        DELETE FROM audit_entries e USING old WHERE (e.app_id, e.entry_id) = (old.app_id, old.entry_id) RETURNING 1)
    SELECT (SELECT count(*) FROM deleted), count(*), max(old.occurred_at) FROM old
$$;
-- It runs as the owner: nobody else's schema may come in between.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION syncbeat_delete_old_audit SET search_path = %I, pg_temp', current_schema());
END $$;
REVOKE ALL ON FUNCTION syncbeat_delete_old_audit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION syncbeat_delete_old_audit TO syncbeat_service;
