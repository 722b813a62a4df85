-- One row for each citizen seen in a report. `place`: index in the report; `citizen`: the token of the identity.
SELECT report_id, watcher_id, time, lat, lon, h3, place, seen.citizen AS citizen, seen.harmonyscore AS harmonyscore,
       seen.confidence AS confidence, seen.citizen_sealed AS citizen_sealed
FROM (
    SELECT report_id, watcher_id, time, lat, lon, h3, unnest(citizens) AS seen,
           generate_subscripts(citizens, 1) - 1 AS place
    FROM lake_reports WHERE NOT coalesce(repeat, false)
)
