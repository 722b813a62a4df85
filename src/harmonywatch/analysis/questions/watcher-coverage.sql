-- title: What each watcher covered
-- sentence: How many reports, cells and citizens did each watcher bring, and from when to when?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "point", "x": {"field": "cells", "type": "quantitative", "title": "distinct cells"},
-- chart: "y": {"field": "reports", "type": "quantitative", "title": "reports"}}
SELECT watcher_id, count(*) AS reports, count(DISTINCT h3) AS cells, CAST(sum(len(citizens)) AS BIGINT) AS sightings,
       min(time) AS first_at, max(time) AS last_at
FROM reports
WHERE time >= $since AND time < $until
GROUP BY watcher_id
ORDER BY reports DESC, watcher_id
