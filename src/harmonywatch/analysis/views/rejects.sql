-- What was refused, with its reason; `bytes` are sealed.
SELECT * FROM lake_rejects
