-- title: Watchers whose clocks are wrong
-- sentence: Which watchers' clocks cannot be right, how often, and by how many hours at most (positive: behind)?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "bar", "top": 40, "x": {"field": "suspect", "type": "quantitative", "title": "reports with a suspect clock"},
-- chart: "y": {"field": "watcher_id", "type": "nominal", "title": "watcher", "sort": "-x"}}
SELECT watcher_id, count(*) AS suspect,
       round(min(date_diff('second', device_time, received_at) / 3600.0), 3) AS least_hours,
       round(max(date_diff('second', device_time, received_at) / 3600.0), 3) AS most_hours
FROM reports
WHERE time >= $since AND time < $until AND clock_suspect
GROUP BY watcher_id
ORDER BY suspect DESC, watcher_id
