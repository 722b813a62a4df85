-- title: Firmware against failures
-- sentence: Which model and firmware misses its turns most often? A failure: no next report in time.
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param minutes number = 2.5 : a report later than this after the one before is a failure, in minutes
-- chart: {"mark": "bar", "x": {"field": "firmware", "type": "nominal", "title": "firmware"},
-- chart: "y": {"field": "failure_share", "type": "quantitative", "title": "share of turns missed", "format": "%"},
-- chart: "xOffset": {"field": "model", "type": "nominal"},
-- chart: "color": {"field": "model", "type": "nominal", "title": "model"}}
WITH turns AS (
    SELECT model, firmware, date_diff('second', time, lead(time) OVER (
        PARTITION BY watcher_id ORDER BY time, received_at, report_id, partition, "offset")) AS pause_s
    FROM reports
    WHERE time >= $since AND time < $until
)
SELECT coalesce(model, 'unknown') AS model, coalesce(firmware, 'unknown') AS firmware, count(*) AS turns,
       count(CASE WHEN pause_s > $minutes * 60 THEN 1 END) AS failures,
       round(CAST(count(CASE WHEN pause_s > $minutes * 60 THEN 1 END) AS DOUBLE) / count(*), 4) AS failure_share
FROM turns
WHERE pause_s IS NOT NULL
GROUP BY 1, 2
ORDER BY failure_share DESC, model, firmware
