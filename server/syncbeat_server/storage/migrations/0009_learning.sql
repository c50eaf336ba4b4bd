-- What an app's hints learn by themselves: when some of its scopes changed, the prior fitted to that, the price of
-- staleness that meets its target.

-- The instants at which scopes of the app's sample changed; two days of them (sync/fitting.py).
CREATE TABLE change_samples (
    app_id     text COLLATE "C" NOT NULL,
    scope      text COLLATE "C" NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (app_id, scope, changed_at)
);
CREATE INDEX change_samples_by_age ON change_samples (changed_at);

-- Whether a scope is in a sample of this share of all scopes: by the first four bytes of a digest of its name.
CREATE FUNCTION syncbeat_sampled(scope text, share double precision) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('x' || encode(substr(sha256(convert_to(scope, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint
           < share * 4294967296.0
$$;

CREATE TABLE app_learning (
    app_id          text COLLATE "C" PRIMARY KEY,
    -- The price, in polls, of a stale second and of a late change, and the target that it is to meet.
    target_kind     text NOT NULL CHECK (target_kind IN ('mean', 'p95', 'budget')),
    target_value    double precision NOT NULL CHECK (target_value > 0),
    price_staleness double precision NOT NULL CHECK (price_staleness > 0),
    price_lateness  double precision NOT NULL CHECK (price_lateness >= 0),
    tuned_at        timestamptz NOT NULL,
    -- Measured since tuned_at by all processes (sync/policy/tuned.py: Sums).
    changes         double precision NOT NULL DEFAULT 0,
    stale_s         double precision NOT NULL DEFAULT 0,
    late            double precision NOT NULL DEFAULT 0,
    polls           double precision NOT NULL DEFAULT 0,
    capped          double precision NOT NULL DEFAULT 0,
    floored         double precision NOT NULL DEFAULT 0,
    requests        double precision NOT NULL DEFAULT 0,
    -- Staleness times the root of its price, of so many changes, which fades within half an hour; and requests over the
    -- root of their price, of so many seconds, which fades within a day.
    unit_changes    double precision NOT NULL DEFAULT 0,
    unit_stale_s    double precision NOT NULL DEFAULT 0,
    unit_requests   double precision NOT NULL DEFAULT 0,
    unit_s          double precision NOT NULL DEFAULT 0,
    -- Measured before the last adjustment, for people to look at.
    mean_s          double precision,
    late_share      double precision,
    -- The prior (sync/policy/belief.py: Prior, in its order); none before the first fit.
    prior           double precision[] CHECK (cardinality(prior) = 6),
    fitted_at       timestamptz,
    fitted_scopes   integer,
    fitted_changes  integer,
    -- When somebody last looked whether to fit, which keeps others from it for an hour.
    looked_at       timestamptz,
    -- Which share of the scopes is sampled, and since when at least that many.
    sample_share    double precision NOT NULL DEFAULT 1 CHECK (sample_share > 0 AND sample_share <= 1),
    sampled_since   timestamptz NOT NULL
) WITH (fillfactor = 50);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['change_samples', 'app_learning'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;
