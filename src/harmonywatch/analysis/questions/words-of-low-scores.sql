-- title: Words that go with low scores
-- sentence: Which words are heard more often in reports with a low score than in all? Lift 2 = twice as often.
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- param threshold number = 25 : a score below this is low
-- param least integer = 5 : fewest reports a word must be heard in
-- chart: {"mark": "bar", "top": 25, "x": {"field": "lift", "type": "quantitative", "title": "lift (1 = as everywhere)"},
-- chart: "y": {"field": "word", "type": "nominal", "title": "word", "sort": "-x"}}
WITH low AS (
    SELECT DISTINCT report_id, watcher_id
    FROM sightings
    WHERE time >= $since AND time < $until AND harmonyscore < $threshold
),
counted AS (
    SELECT count(*) AS reports, count(low.report_id) AS low_reports
    FROM (
        SELECT DISTINCT report_id, watcher_id FROM reports WHERE time >= $since AND time < $until
    ) AS every
    LEFT JOIN low ON low.report_id = every.report_id AND low.watcher_id = every.watcher_id
),
spoken AS (
    SELECT DISTINCT report_id, watcher_id, lower(word) AS word
    FROM heard
    WHERE time >= $since AND time < $until
),
by_word AS (
    SELECT spoken.word AS word, count(*) AS reports, count(low.report_id) AS low_reports
    FROM spoken
    LEFT JOIN low ON low.report_id = spoken.report_id AND low.watcher_id = spoken.watcher_id
    GROUP BY spoken.word
)
SELECT by_word.word AS word, by_word.reports AS reports, by_word.low_reports AS low_reports,
       round(CAST(by_word.low_reports AS DOUBLE) * counted.reports / (CAST(by_word.reports AS DOUBLE) * counted.low_reports), 3)
           AS lift
FROM by_word CROSS JOIN counted
WHERE by_word.reports >= $least AND counted.low_reports > 0
ORDER BY lift DESC, reports DESC, word
