-- The roles that row-level security speaks of, and the clock of every statement.
--
-- syncbeat_service sees every row; the service's login inherits it. syncbeat_user sees the rows of the user that the
-- transaction is for; the service's login takes it with SET LOCAL ROLE. Nobody logs in as either. The runner grants
-- them to that login, each time it runs.

-- Roles belong to the whole cluster: another database of it may have made them, or be making them now.
DO $$
DECLARE wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['syncbeat_service', 'syncbeat_user'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO syncbeat_service, syncbeat_user', current_schema());
END $$;

-- All SQL takes the time from here: the moment the transaction began. Tests put a clock of their own in its place.
CREATE FUNCTION syncbeat_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT now() $$;

-- A server looks here when it starts, to see whether the database is of its age.
GRANT SELECT ON schema_migrations TO syncbeat_service;
