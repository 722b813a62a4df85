-- title: Alerts by district
-- sentence: In which districts (H3 cells of about 5 square kilometres) do alerts come?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "cells", "cell": "district", "colour": {"field": "alerts", "title": "alerts"}}
SELECT h3_parent(h3, 7) AS district, count(*) AS alerts, count(DISTINCT citizen) AS citizens,
       count(DISTINCT watcher_id) AS watchers
FROM alerts
WHERE time >= $since AND time < $until AND h3 IS NOT NULL
GROUP BY 1
ORDER BY alerts DESC, district
