-- title: Citizens seen by many watchers
-- sentence: Which citizens, as tokens, are seen by the most watchers, and how do they score?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param least integer = 3 : fewest watchers to be listed
-- chart: {"mark": "point", "x": {"field": "watchers", "type": "quantitative", "title": "distinct watchers"},
-- chart: "y": {"field": "mean_score", "type": "quantitative", "title": "mean harmonyscore"},
-- chart: "size": {"field": "sightings", "type": "quantitative", "title": "sightings"}}
SELECT citizen, count(DISTINCT watcher_id) AS watchers, count(*) AS sightings,
       round(avg(harmonyscore), 3) AS mean_score, count(DISTINCT h3) AS cells
FROM sightings
WHERE time >= $since AND time < $until AND citizen IS NOT NULL
GROUP BY citizen
HAVING count(DISTINCT watcher_id) >= $least
ORDER BY watchers DESC, sightings DESC, citizen
