-- What `reports` hides: one row for each time a report was sent again with the same content.
SELECT report_id, watcher_id, time, received_at, partition, "offset" FROM lake_reports WHERE repeat
