-- How much each user may do: tiers that were granted to users, and what was used of monthly quotas.

-- Apart from `users`, so that granting a tier lets nobody in: there a row means that the user is known.
CREATE TABLE user_tiers (
    app_id     text COLLATE "C" NOT NULL,
    user_id    text COLLATE "C" NOT NULL,
    tier       text COLLATE "C" NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (app_id, user_id)
);

-- One row for each app (`name` is empty) or principal (user:NAME, service:NAME), class of RPCs and month. The month is the
-- date on which it begins in the app's time zone, so that counts stay when an app moves to another zone.
CREATE TABLE quota_usage (
    app_id       text COLLATE "C" NOT NULL,
    subject      text COLLATE "C" NOT NULL,
    name         text COLLATE "C" NOT NULL,
    method_class text COLLATE "C" NOT NULL,
    month        date NOT NULL,
    used         bigint NOT NULL,
    updated_at   timestamptz NOT NULL,
    PRIMARY KEY (app_id, name, subject, method_class, month)
) WITH (fillfactor = 70);  -- updates every few seconds find room beside the row, and touch no index
CREATE INDEX quota_usage_by_month ON quota_usage (month);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['user_tiers', 'quota_usage'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;
