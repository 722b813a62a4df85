-- title: Reports that never came
-- sentence: Whose sequence numbers jump, and how many reports are missing between the jumps?
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "bar", "top": 40, "x": {"field": "missing", "type": "quantitative", "title": "reports missing"},
-- chart: "y": {"field": "watcher_id", "type": "nominal", "title": "watcher", "sort": "-x"}}
WITH numbered AS (
    SELECT DISTINCT watcher_id, sequence
    FROM reports
    WHERE time >= $since AND time < $until AND sequence IS NOT NULL
),
steps AS (
    SELECT watcher_id, sequence, sequence - lag(sequence) OVER (PARTITION BY watcher_id ORDER BY sequence) - 1 AS missing
    FROM numbered
)
SELECT watcher_id, count(*) AS gaps, CAST(sum(missing) AS BIGINT) AS missing, CAST(max(missing) AS BIGINT) AS longest
FROM steps
WHERE missing > 0
GROUP BY watcher_id
ORDER BY missing DESC, watcher_id
