-- title: Alerts by day of the week
-- sentence: On which days of the week (UTC, 1 = Monday) do alerts come?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "bar", "x": {"field": "weekday", "type": "ordinal", "title": "day of the week (1 = Monday, UTC)"},
-- chart: "y": {"field": "alerts", "type": "quantitative", "title": "alerts"}}
SELECT CAST(CASE WHEN extract(dow FROM time) = 0 THEN 7 ELSE extract(dow FROM time) END AS INTEGER) AS weekday,
       count(*) AS alerts, count(DISTINCT citizen) AS citizens
FROM alerts
WHERE time >= $since AND time < $until
GROUP BY 1
ORDER BY weekday
