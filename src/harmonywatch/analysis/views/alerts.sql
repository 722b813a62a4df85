-- Every alert once: the topic may hold an alert twice, and the second row is hidden here.
SELECT * FROM lake_alerts WHERE NOT coalesce(repeat, false)
