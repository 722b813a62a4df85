-- title: Agitation by H3 cell
-- sentence: Where in the city are scores low? One row a cell of about 0.1 square kilometres.
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param least integer = 5 : fewest sightings for a cell to be shown
-- chart: {"mark": "cells", "cell": "cell",
-- chart: "colour": {"field": "mean_score", "title": "mean harmonyscore", "scheme": "redyellowgreen", "domain": [25, 75]}}
SELECT h3 AS cell, count(*) AS sightings, round(avg(harmonyscore), 3) AS mean_score,
       count(CASE WHEN harmonyscore < 25 THEN 1 END) AS low
FROM sightings
WHERE time >= $since AND time < $until AND h3 IS NOT NULL
GROUP BY h3
HAVING count(*) >= $least
ORDER BY cell
