-- Who may call: users that are known or shut out, and our own sessions.

-- One row for each user anybody has heard of; it stays when the user is deleted, so that the tokens stay dead.
CREATE TABLE users (
    app_id        text COLLATE "C" NOT NULL,
    user_id       text COLLATE "C" NOT NULL,
    -- Tokens of our own sessions that were issued under an older generation are dead.
    generation    bigint NOT NULL DEFAULT 0,
    -- Tokens of other issuers that were issued up to the second of it are dead.
    revoked_at    timestamptz,
    revoke_reason text NOT NULL DEFAULT '',
    disabled_at   timestamptz,
    deleted_at    timestamptz,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (app_id, user_id)
);

-- A family of refresh tokens: `counter` is the number of the one that is good, `confirmed` the newest that is known to
-- have reached its holder, because it or the access token that came with it was used.
CREATE TABLE sessions (
    app_id        text COLLATE "C" NOT NULL,
    session_id    text COLLATE "C" NOT NULL DEFAULT syncbeat_uuid7()::text,
    user_id       text COLLATE "C" NOT NULL,
    device_id     text COLLATE "C" NOT NULL DEFAULT '',
    claims        jsonb NOT NULL DEFAULT '{}',
    generation    bigint NOT NULL,
    counter       bigint NOT NULL DEFAULT 0,
    confirmed     bigint NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL,
    refreshed_at  timestamptz NOT NULL,
    idle_until    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    revoked_at    timestamptz,
    revoke_reason text NOT NULL DEFAULT '',
    PRIMARY KEY (app_id, session_id),
    FOREIGN KEY (app_id, user_id) REFERENCES users (app_id, user_id)
) WITH (fillfactor = 80);
CREATE INDEX sessions_by_user ON sessions (app_id, user_id, session_id);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['users', 'sessions'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;

GRANT SELECT, UPDATE (revoked_at, revoke_reason) ON sessions TO syncbeat_user;
CREATE POLICY own ON sessions TO syncbeat_user
    USING (app_id = syncbeat_app() AND user_id = syncbeat_caller())
    WITH CHECK (app_id = syncbeat_app() AND user_id = syncbeat_caller());
