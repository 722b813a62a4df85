-- title: Harmonyscore over time
-- sentence: How do the mean score and the share of low scores move, hour by hour?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param threshold number = 25 : a score below this is low
-- chart: {"mark": "line", "x": {"field": "hour", "type": "temporal", "title": "hour (UTC)"},
-- chart: "y": {"field": "mean_score", "type": "quantitative", "title": "mean harmonyscore (0 to 100)", "zero": false}}
SELECT date_trunc('hour', time) AS hour, count(*) AS sightings, round(avg(harmonyscore), 3) AS mean_score,
       round(min(harmonyscore), 3) AS lowest_score,
       round(CAST(count(CASE WHEN harmonyscore < $threshold THEN 1 END) AS DOUBLE) / count(*), 4) AS low_share
FROM sightings
WHERE time >= $since AND time < $until
GROUP BY 1
ORDER BY hour
