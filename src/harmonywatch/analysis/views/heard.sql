-- One row for each word heard in a report. `place`: index in the report.
SELECT report_id, watcher_id, time, lat, lon, h3, generate_subscripts(words, 1) - 1 AS place, unnest(words) AS word
FROM lake_reports WHERE NOT coalesce(repeat, false)
