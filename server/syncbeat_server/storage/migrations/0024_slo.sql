-- What the service level objectives are held against, and figures that operators enter.

-- Counts of all processes of a deployment together: by what is counted, and by span of time. Each process adds its own.
CREATE TABLE slo_counts (
    series     text COLLATE "C" NOT NULL CHECK (octet_length(series) BETWEEN 1 AND 64),
    -- The length of the span. Each count is added to a short one and to a long one, so that nothing has to be rolled up.
    width_s    integer NOT NULL CHECK (width_s BETWEEN 1 AND 86400),
    starts_at  timestamptz NOT NULL,
    amounts    double precision[] NOT NULL CHECK (cardinality(amounts) BETWEEN 1 AND 32),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (width_s, starts_at, series)
-- Rows of now are updated every few seconds by every process; none of their columns that changes is in an index.
) WITH (fillfactor = 50);
CREATE INDEX slo_counts_by_age ON slo_counts (expires_at);

-- Counters of PostgreSQL's own as they stood when their growth was last added to slo_counts.
CREATE TABLE slo_marks (
    name  text COLLATE "C" PRIMARY KEY CHECK (octet_length(name) BETWEEN 1 AND 64),
    value double precision NOT NULL
);

-- Figures from outside, such as complaints: the newest of each name.
CREATE TABLE slo_figures (
    name   text COLLATE "C" PRIMARY KEY CHECK (octet_length(name) BETWEEN 1 AND 64),
    value  double precision NOT NULL,
    put_at timestamptz NOT NULL
);
CREATE INDEX slo_figures_by_age ON slo_figures (put_at);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['slo_counts', 'slo_marks', 'slo_figures'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;
