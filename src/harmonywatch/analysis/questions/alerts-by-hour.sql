-- title: Alerts by hour of the day
-- sentence: At which hours of the day (UTC) do alerts come?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "bar", "x": {"field": "hour", "type": "ordinal", "title": "hour of the day (UTC)"},
-- chart: "y": {"field": "alerts", "type": "quantitative", "title": "alerts"}}
SELECT CAST(extract(hour FROM time) AS INTEGER) AS hour, count(*) AS alerts, count(DISTINCT citizen) AS citizens
FROM alerts
WHERE time >= $since AND time < $until
GROUP BY 1
ORDER BY hour
