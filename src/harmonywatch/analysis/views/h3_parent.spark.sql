-- What h3_parent.sql says, in Spark's words.
(cell STRING, resolution INT) RETURNS STRING RETURN
lower(hex(
    ((CAST(conv(cell, 16, 10) AS BIGINT) & -67553994410557441) | shiftleft(CAST(resolution AS BIGINT), 52))
    | (shiftleft(CAST(1 AS BIGINT), 3 * (15 - resolution)) - 1)))
