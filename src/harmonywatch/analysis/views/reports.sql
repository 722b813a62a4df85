-- Every report once, all columns: a report that was sent again has a second row in the lake, which is hidden here.
SELECT * FROM lake_reports WHERE NOT coalesce(repeat, false)
