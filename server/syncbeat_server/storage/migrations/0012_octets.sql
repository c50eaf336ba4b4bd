-- What a value comes to when it is read, and a bound on that. PostgreSQL prints numbers without an exponent, so that
-- 1e-16000, five bytes of jsonb, is 16 KB of text: numbers that are out of bounds are rewritten before anything is printed.

-- Whether a number keeps to the bounds of rpc/documents.py.
CREATE FUNCTION pg_temp.within_bounds(n numeric) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE digits text;
BEGIN
    IF n = 0 THEN
        RETURN scale(n) <= 307;
    END IF;
    IF abs(n) >= 1e309 OR abs(n) < 1e-307 OR scale(n) > 340 THEN
        RETURN false;
    END IF;
    digits := ltrim(replace(abs(n)::text, '.', ''), '0');
    RETURN length(CASE WHEN scale(n) = 0 THEN rtrim(digits, '0') ELSE digits END) <= 34;
END $$;

-- The finite double that is nearest to a number, among those that may be published again.
CREATE FUNCTION pg_temp.nearest_double(n numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN abs(n) > 1.7976931348623157e308 THEN sign(n) * 1.7976931348623157e308
                WHEN abs(n) < 1e-307 THEN 0
                -- By way of text, since float8::numeric keeps fifteen digits only.
                ELSE n::float8::text::numeric END
$$;

CREATE FUNCTION pg_temp.bounded(value jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    CASE jsonb_typeof(value)
        WHEN 'number' THEN
            RETURN CASE WHEN pg_temp.within_bounds(value::numeric) THEN value
                        ELSE to_jsonb(pg_temp.nearest_double(value::numeric)) END;
        WHEN 'object' THEN
            RETURN coalesce((SELECT jsonb_object_agg(e.key, pg_temp.bounded(e.value)) FROM jsonb_each(value) e), '{}');
        WHEN 'array' THEN
            RETURN coalesce((SELECT jsonb_agg(pg_temp.bounded(e.value) ORDER BY e.place)
                             FROM jsonb_array_elements(value) WITH ORDINALITY AS e (value, place)), '[]');
        ELSE
            RETURN value;
    END CASE;
END $$;

-- Whether a value holds such a number. Most values are small and printed at once, which shows that they hold no long
-- number; of the others each number is looked at, without printing it.
CREATE FUNCTION pg_temp.out_of_bounds(value jsonb) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    -- In an array, so that its size is the one before compression: 8 KB of numbers print to 0.1 GB at most.
    IF pg_column_size(jsonb_build_array(value)) <= 8192 THEN
        IF value::text !~ '[0-9.]{35}' THEN
            RETURN false;
        END IF;
    END IF;
    RETURN EXISTS (SELECT FROM jsonb_path_query(value, 'strict $.** ? (@.type() == "number")') AS found (number)
                   WHERE NOT pg_temp.within_bounds(found.number::numeric));
END $$;

-- The owner has no policy of its own.
ALTER TABLE changes NO FORCE ROW LEVEL SECURITY,
    -- A double may take more room than the number it stands for.
    DROP CONSTRAINT changes_value_size;

DO $$
DECLARE
    found record;
    -- One page of rows at a time, whatever the table's size.
    rows CURSOR FOR SELECT app_id, scope, key, value FROM changes
        WHERE value IS NOT NULL AND pg_temp.out_of_bounds(value) FOR UPDATE;
BEGIN
    FOR found IN rows LOOP
        UPDATE changes SET value = pg_temp.bounded(found.value) WHERE CURRENT OF rows;
        RAISE WARNING 'rewrote numbers that are out of bounds to the nearest double: app %, scope %, key %',
            quote_literal(found.app_id), quote_literal(found.scope), quote_literal(found.key);
    END LOOP;
END $$;

ALTER TABLE changes FORCE ROW LEVEL SECURITY;

-- Generated, so that it is right whoever writes the row: earlier versions of the server do so during an update.
ALTER TABLE changes ADD COLUMN octets integer NOT NULL
    GENERATED ALWAYS AS (coalesce(octet_length(value::text), 0)) STORED;
-- Of what comes from now on: a larger value that is there already stays, and can be read.
ALTER TABLE changes
    ADD CONSTRAINT changes_value_size CHECK (pg_column_size(value) <= 1048576) NOT VALID,
    ADD CONSTRAINT changes_value_octets CHECK (octets <= 1048576) NOT VALID;
