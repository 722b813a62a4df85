-- title: Citizens with the most alerts
-- sentence: Which citizens, as tokens, caused alerts again and again, on how many days and in how many cells?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param least integer = 2 : fewest alerts to be listed
-- chart: {"mark": "bar", "top": 25, "x": {"field": "alerts", "type": "quantitative", "title": "alerts"},
-- chart: "y": {"field": "citizen", "type": "nominal", "title": "citizen (token)", "sort": "-x"}}
SELECT citizen, count(*) AS alerts, count(DISTINCT CAST(time AS DATE)) AS days, count(DISTINCT h3) AS cells,
       count(DISTINCT watcher_id) AS watchers, round(min(harmonyscore), 3) AS lowest_score,
       min(time) AS first_at, max(time) AS last_at
FROM alerts
WHERE time >= $since AND time < $until AND citizen IS NOT NULL
GROUP BY citizen
HAVING count(*) >= $least
ORDER BY alerts DESC, citizen
