-- Whose devices and memberships changed, and which scopes in more than their head, for processes that keep in memory what
-- hints are made of: each looks here for what no wake-up told it. A row names a user or a scope, and the transaction that
-- wrote it, so that a reader who remembers the oldest one that was under way misses nothing, in whichever order they end.
-- Rows are only added: nobody waits for anybody.

CREATE TABLE touches (
    app_id     text COLLATE "C" NOT NULL,
    user_id    text COLLATE "C" NOT NULL DEFAULT '',
    scope      text COLLATE "C" NOT NULL DEFAULT '',
    xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    touched_at timestamptz NOT NULL DEFAULT syncbeat_now(),
    PRIMARY KEY (app_id, user_id, scope, xid)
);
CREATE INDEX touches_by_xid ON touches (xid);

-- No conflict target: with one, a user would have to be let see the rows too.
CREATE FUNCTION syncbeat_touch_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO touches (app_id, user_id) SELECT DISTINCT app_id, user_id FROM touched ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- A device that is new changes no hint that anybody remembers; of one that is changed only this goes into hints.
CREATE FUNCTION syncbeat_touch_changed_devices() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO touches (app_id, user_id)
    SELECT DISTINCT app_id, user_id FROM touched JOIN before USING (app_id, user_id, device_id)
    WHERE (touched.activity, touched.platform, touched.token_state)
          IS DISTINCT FROM (before.activity, before.platform, before.token_state)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION syncbeat_touch_scope() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO touches (app_id, scope) VALUES (NEW.app_id, NEW.scope) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER touch_joiners AFTER INSERT ON scope_members
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION syncbeat_touch_users();
CREATE TRIGGER touch_leavers AFTER DELETE ON scope_members
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION syncbeat_touch_users();
CREATE TRIGGER touch_changed AFTER UPDATE ON devices
    REFERENCING NEW TABLE AS touched OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION syncbeat_touch_changed_devices();
CREATE TRIGGER touch_gone AFTER DELETE ON devices
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION syncbeat_touch_users();
-- A new head is found by its changed_at; publishing pays nothing for this.
CREATE TRIGGER touch_scope AFTER UPDATE ON scopes FOR EACH ROW
    WHEN ((NEW.boosted, NEW.boosted_until, NEW.present, NEW.presence_at)
          IS DISTINCT FROM (OLD.boosted, OLD.boosted_until, OLD.present, OLD.presence_at))
    EXECUTE FUNCTION syncbeat_touch_scope();

ALTER TABLE touches ENABLE ROW LEVEL SECURITY;
ALTER TABLE touches FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON touches TO syncbeat_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON touches TO syncbeat_service;
CREATE POLICY own ON touches FOR INSERT TO syncbeat_user
    WITH CHECK (app_id = syncbeat_app() AND user_id IN ('', syncbeat_caller()));
GRANT INSERT ON touches TO syncbeat_user;
