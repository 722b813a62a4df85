-- title: How late reports arrive
-- sentence: How long does a report take from the watcher's clock to us? Negative: the watcher's clock is ahead.
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "bar", "x": {"field": "delay", "type": "nominal", "title": "delay", "sort": {"field": "rank"}},
-- chart: "y": {"field": "reports", "type": "quantitative", "title": "reports"}}
WITH delays AS (
    SELECT date_diff('microsecond', device_time, received_at) / 1000000.0 AS delay_s
    FROM reports
    WHERE time >= $since AND time < $until AND device_time IS NOT NULL
),
ranked AS (
    SELECT delay_s,
           CASE WHEN delay_s < 0 THEN 0 WHEN delay_s < 1 THEN 1 WHEN delay_s < 10 THEN 2 WHEN delay_s < 60 THEN 3
                WHEN delay_s < 600 THEN 4 WHEN delay_s < 3600 THEN 5 WHEN delay_s < 86400 THEN 6 ELSE 7 END AS rank
    FROM delays
)
SELECT rank, CASE rank WHEN 0 THEN 'below 0' WHEN 1 THEN '0 to 1 s' WHEN 2 THEN '1 to 10 s' WHEN 3 THEN '10 to 60 s'
                       WHEN 4 THEN '1 to 10 min' WHEN 5 THEN '10 to 60 min' WHEN 6 THEN '1 to 24 h'
                       ELSE 'a day or more' END AS delay,
       count(*) AS reports, round(max(delay_s), 3) AS longest_s
FROM ranked
GROUP BY rank
ORDER BY rank
