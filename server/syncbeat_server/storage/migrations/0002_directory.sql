-- Devices, scopes and their members; the record of requests that were answered.
-- Every row belongs to an app; a USER's transaction (role syncbeat_user) sees only the rows of the user
-- named by the transaction-local settings syncbeat.app_id and syncbeat.user_id.

CREATE FUNCTION syncbeat_app() RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT current_setting('syncbeat.app_id', true) $$;
CREATE FUNCTION syncbeat_caller() RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT current_setting('syncbeat.user_id', true) $$;

-- A UUID that sorts by the time it was made (RFC 9562, version 7), for keys that grow at one end.
CREATE FUNCTION syncbeat_uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                    FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;

CREATE TABLE devices (
    app_id              text COLLATE "C" NOT NULL,
    user_id             text COLLATE "C" NOT NULL,
    device_id           text COLLATE "C" NOT NULL,
    platform            text NOT NULL CHECK (platform IN ('ANDROID', 'IOS', 'WEB')),
    registration_token  text,
    token_digest        bytea,
    token_state         text NOT NULL CHECK (token_state IN ('NONE', 'ACTIVE', 'DEAD', 'MOVED')),
    token_registered_at timestamptz,
    time_zone           text NOT NULL DEFAULT '',
    locale              text NOT NULL DEFAULT '',
    activity            jsonb,
    activity_at         timestamptz,
    registered_at       timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (app_id, user_id, device_id),
    CHECK ((token_state = 'ACTIVE') = (registration_token IS NOT NULL)),
    CHECK ((registration_token IS NULL) = (token_digest IS NULL))
);
CREATE UNIQUE INDEX devices_by_token ON devices (app_id, token_digest) WHERE token_digest IS NOT NULL;

-- Who held a registration token before it moved, for the audit trail.
CREATE TABLE token_moves (
    app_id          text COLLATE "C" NOT NULL,
    move_id         uuid NOT NULL DEFAULT syncbeat_uuid7(),
    token_digest    bytea NOT NULL,
    from_user_id    text COLLATE "C" NOT NULL,
    from_device_id  text COLLATE "C" NOT NULL,
    to_user_id      text COLLATE "C" NOT NULL,
    to_device_id    text COLLATE "C" NOT NULL,
    caller          text NOT NULL,
    moved_at        timestamptz NOT NULL,
    PRIMARY KEY (app_id, move_id)
);
CREATE INDEX token_moves_by_token ON token_moves (app_id, token_digest, moved_at);

CREATE TABLE scopes (
    app_id      text COLLATE "C" NOT NULL,
    scope       text COLLATE "C" NOT NULL,
    epoch       text COLLATE "C" NOT NULL DEFAULT substr(encode(uuid_send(gen_random_uuid()), 'hex'), 1, 12),
    head        bigint NOT NULL DEFAULT 0,
    -- Change commits per second as of changed_at; it decays from there (sync/policy.py).
    change_rate double precision NOT NULL DEFAULT 0,
    changed_at  timestamptz,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (app_id, scope)
);
CREATE INDEX scopes_by_change ON scopes (app_id, changed_at);

CREATE TABLE scope_members (
    app_id   text COLLATE "C" NOT NULL,
    user_id  text COLLATE "C" NOT NULL,
    scope    text COLLATE "C" NOT NULL,
    role     text NOT NULL CHECK (role IN ('READER', 'WRITER')),
    added_at timestamptz NOT NULL,
    PRIMARY KEY (app_id, user_id, scope),
    FOREIGN KEY (app_id, scope) REFERENCES scopes (app_id, scope)
);
CREATE UNIQUE INDEX scope_members_by_scope ON scope_members (app_id, scope, user_id);
CREATE INDEX scope_members_by_age ON scope_members (added_at);

-- What a request_id was answered with, so that a replay gets the first answer.
CREATE TABLE request_records (
    app_id       text COLLATE "C" NOT NULL,
    caller       text COLLATE "C" NOT NULL,
    rpc          text COLLATE "C" NOT NULL,
    request_id   text COLLATE "C" NOT NULL,
    content_hash bytea NOT NULL,
    answer       jsonb,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (app_id, caller, rpc, request_id)
);
CREATE INDEX request_records_by_age ON request_records (created_at);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['devices', 'token_moves', 'scopes', 'scope_members', 'request_records'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;

GRANT SELECT, INSERT, UPDATE, DELETE ON devices TO syncbeat_user;
CREATE POLICY own ON devices TO syncbeat_user
    USING (app_id = syncbeat_app() AND user_id = syncbeat_caller())
    WITH CHECK (app_id = syncbeat_app() AND user_id = syncbeat_caller());

GRANT SELECT ON scope_members TO syncbeat_user;
CREATE POLICY own ON scope_members FOR SELECT TO syncbeat_user
    USING (app_id = syncbeat_app() AND user_id = syncbeat_caller());

GRANT SELECT, UPDATE ON scopes TO syncbeat_user;
CREATE POLICY member ON scopes FOR SELECT TO syncbeat_user
    USING (app_id = syncbeat_app() AND EXISTS (
        SELECT 1 FROM scope_members m
        WHERE m.app_id = scopes.app_id AND m.user_id = syncbeat_caller() AND m.scope = scopes.scope));
CREATE POLICY writer ON scopes FOR UPDATE TO syncbeat_user
    USING (app_id = syncbeat_app() AND EXISTS (
        SELECT 1 FROM scope_members m
        WHERE m.app_id = scopes.app_id AND m.user_id = syncbeat_caller() AND m.scope = scopes.scope
          AND m.role = 'WRITER'));

GRANT SELECT, INSERT, UPDATE ON request_records TO syncbeat_user;
CREATE POLICY own ON request_records TO syncbeat_user
    USING (app_id = syncbeat_app() AND caller = 'user:' || syncbeat_caller())
    WITH CHECK (app_id = syncbeat_app() AND caller = 'user:' || syncbeat_caller());
