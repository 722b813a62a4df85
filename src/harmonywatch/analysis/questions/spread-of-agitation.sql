-- title: Spread of agitation in space and time
-- sentence: How does the share of low scores move through the districts, hour by hour?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param threshold number = 25 : a score below this is low
-- chart: {"mark": "rect", "x": {"field": "hour", "type": "temporal", "title": "hour (UTC)", "timeUnit": "utcyearmonthdatehours"},
-- chart: "y": {"field": "district", "type": "nominal", "title": "district (H3 cell)"},
-- chart: "color": {"field": "low_share", "type": "quantitative", "title": "share of low scores", "scheme": "orangered"}}
SELECT date_trunc('hour', time) AS hour, h3_parent(h3, 7) AS district, count(*) AS sightings,
       count(CASE WHEN harmonyscore < $threshold THEN 1 END) AS low,
       round(CAST(count(CASE WHEN harmonyscore < $threshold THEN 1 END) AS DOUBLE) / count(*), 4) AS low_share
FROM sightings
WHERE time >= $since AND time < $until AND h3 IS NOT NULL
GROUP BY 1, 2
ORDER BY hour, district
