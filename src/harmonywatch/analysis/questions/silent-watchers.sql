-- title: Silent watchers
-- sentence: Which watchers have not been heard for some minutes at the end of the span?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param minutes number = 5 : silence from which a watcher is listed, in minutes
-- chart: {"mark": "bar", "top": 40, "x": {"field": "silent_minutes", "type": "quantitative", "title": "silence (minutes)"},
-- chart: "y": {"field": "watcher_id", "type": "nominal", "title": "watcher", "sort": "-x"}}
SELECT watcher_id, max(received_at) AS last_received_at,
       round(date_diff('second', max(received_at), CAST($until AS TIMESTAMPTZ)) / 60.0, 2) AS silent_minutes
FROM reports
WHERE time >= $since AND time < $until
GROUP BY watcher_id
HAVING date_diff('second', max(received_at), CAST($until AS TIMESTAMPTZ)) >= $minutes * 60
ORDER BY last_received_at, watcher_id
