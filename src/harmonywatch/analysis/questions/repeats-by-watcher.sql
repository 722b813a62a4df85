-- title: Reports sent again
-- sentence: Which watchers send the same report more than once, how often, and how long after?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "bar", "top": 40, "x": {"field": "repeats", "type": "quantitative", "title": "reports sent again"},
-- chart: "y": {"field": "watcher_id", "type": "nominal", "title": "watcher", "sort": "-x"}}
WITH first AS (
    SELECT watcher_id, report_id, min(received_at) AS first_at
    FROM reports
    WHERE time >= $since AND time < $until
    GROUP BY watcher_id, report_id
)
SELECT repeats.watcher_id AS watcher_id, count(*) AS repeats, count(DISTINCT repeats.report_id) AS reports,
       max(date_diff('second', first.first_at, repeats.received_at)) AS longest_s
FROM repeats
LEFT JOIN first ON first.watcher_id = repeats.watcher_id AND first.report_id = repeats.report_id
WHERE repeats.time >= $since AND repeats.time < $until
GROUP BY repeats.watcher_id
ORDER BY repeats DESC, watcher_id
