-- title: Refused reports by reason
-- sentence: Why were reports refused, at which member, and from how many senders? Counted by the time of receipt.
-- param since timestamp = now() - interval '7 days' : first moment counted
-- param until timestamp = now() : first moment no longer counted
-- chart: {"mark": "bar", "x": {"field": "rejects", "type": "quantitative", "title": "refused reports"},
-- chart: "y": {"field": "code", "type": "nominal", "title": "reason (code)", "sort": "-x"},
-- chart: "color": {"field": "source", "type": "nominal", "title": "refused by"}}
SELECT code, source, pointer, count(*) AS rejects, count(DISTINCT sender) AS senders, max(received_at) AS last_at
FROM rejects
WHERE received_at >= $since AND received_at < $until
GROUP BY code, source, pointer
ORDER BY rejects DESC, code, source, pointer
