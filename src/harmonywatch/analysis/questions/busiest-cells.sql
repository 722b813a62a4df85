-- title: Busiest cells
-- sentence: In which cells of about 0.1 square kilometres are most citizens seen?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param most integer = 100 : cells listed
-- chart: {"mark": "cells", "cell": "cell", "colour": {"field": "citizens", "title": "distinct citizens", "scheme": "viridis"}}
SELECT h3 AS cell, count(DISTINCT citizen) AS citizens, count(*) AS sightings, count(DISTINCT watcher_id) AS watchers
FROM sightings
WHERE time >= $since AND time < $until AND h3 IS NOT NULL
GROUP BY h3
ORDER BY citizens DESC, sightings DESC, cell
LIMIT $most
