-- title: Battery against failures
-- sentence: How often does a watcher miss its next turn, by the battery it had left? A failure: no next report in time.
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param minutes number = 2.5 : a report later than this after the one before is a failure, in minutes
-- chart: {"mark": "bar", "x": {"field": "battery_percent", "type": "ordinal", "title": "battery left, from (%)"},
-- chart: "y": {"field": "failure_share", "type": "quantitative", "title": "share of turns missed", "format": "%"}}
WITH turns AS (
    SELECT battery, date_diff('second', time, lead(time) OVER (
        PARTITION BY watcher_id ORDER BY time, received_at, report_id, partition, "offset")) AS pause_s
    FROM reports
    WHERE time >= $since AND time < $until
)
SELECT CAST(least(floor(battery * 10), 9) * 10 AS INTEGER) AS battery_percent, count(*) AS turns,
       count(CASE WHEN pause_s > $minutes * 60 THEN 1 END) AS failures,
       round(CAST(count(CASE WHEN pause_s > $minutes * 60 THEN 1 END) AS DOUBLE) / count(*), 4) AS failure_share
FROM turns
WHERE battery IS NOT NULL AND pause_s IS NOT NULL
GROUP BY 1
ORDER BY battery_percent
