"""What both engines answer alike, and what Spark refuses: texts over the views, every one with a total order.

Every function that `dialect.py` lets through stands in ALIKE at least once (a test counts); `{R}` is the reports in an
order without ties.
"""

from __future__ import annotations

R = 'reports order by report_id, received_at, "offset"'

ALIKE = [each.replace("{R}", R) for each in (
    # times
    "select dayofweek(time), isodow(time), weekday(time), extract(dow from time), extract(isodow from time) from {R}",
    "select date_part('dow', time), datepart('doy', time), extract(doy from time), extract(week from time) from {R}",
    "select hour(time), extract(minute from time), second(time), extract(second from time), minute(time) from {R}",
    "select day(time), month(time), quarter(time), year(time), dayofyear(time), week(time), dayofmonth(time) from {R}",
    "select weekofyear(time), month(day), year(day), dayofweek(day) from {R}",
    "select date_diff('second', time, received_at), date_diff('minute', time, received_at) from {R}",
    "select date_diff('hour', device_time, received_at), date_diff('day', device_time, received_at) from {R}",
    "select date_diff('month', device_time, received_at), date_diff('year', device_time, received_at) from {R}",
    "select date_diff('quarter', device_time, received_at), datediff('day', received_at, device_time) from {R}",
    "select date_diff('microsecond', device_time, received_at), date_diff('millisecond', time, received_at) from {R}",
    "select epoch(time), extract(epoch from device_time), date_part('epoch', time), epoch_us(received_at) from {R}",
    "select date_trunc('day', time), date_trunc('hour', time), date_trunc('week', time), date_trunc('month', time) from {R}",
    "select date_trunc('minute', time), date_trunc('quarter', time), date_trunc('year', time) from {R}",
    "select time - interval '1 hour', time + interval 2 day, received_at - time > interval 1 minute from {R}",
    "select time at time zone 'Europe/Berlin', now() > time, current_date >= day from {R}",
    "select current_timestamp > time, get_current_timestamp() > time from {R}",
    "select strftime(time, '%Y-%m-%d %H:%M:%S'), strftime(time, '%H:%M') from {R}",
    "select time::date as d, date_trunc('day', time) as t, date_trunc('month', day) as m from {R}",
    "select count(*) from reports where time >= '2026-11-02' and time < timestamp '2026-11-02 12:00:00'",
    "select count(*) from reports where time between '2026-11-02T00:00:00Z' and '2026-11-03T00:00:00Z'",
    "select time > '2026-11-02T00:00:00+02:00' as late, count(*) from reports group by all order by all",
    "select count(distinct time::date), count(distinct date_trunc('day', time)) from reports",
    "select source, count(*) from rejects where received_at > now() - interval 3650 day group by source order by source",
    # numbers
    "select round(lat, 3), round(lat), round(battery, 1), round(-lat, 2), round(lat * 1000 / 7, 4) from {R}",
    "select round(2.675, 2), round(2.675::double, 2), round(0.5), round(-0.5::double), round(1.005 * 3, 2)",
    "select battery / sequence, sequence / 7, sequence // 7, sequence % 7, mod(sequence, 5), sequence / 3 * 3 from {R}",
    "select lat / 0, -lat / 0, 0 / (battery - battery), sequence / (sequence - sequence), 1 / 3, 5 / 0, 0 / 0 from {R}",
    "select sequence // (sequence - sequence), sequence % (sequence - sequence), 7 // 2, -7 // 2, -7 % 3 from {R}",
    "select cast(battery * 10 as integer), cast(lat * 2 as bigint), cast(sequence * 0.5 as int) from {R}",
    "select 2.5::double::int, 3.5::double::int, -2.5::double::int, 2.5::int, -2.5::int, 1.5e0::int, 1.5, 1e3",
    "select cast(sequence as double), try_cast(firmware as double), sequence::text, day::varchar, repeat::int from {R}",
    "select try_cast('abc' as int), cast('12' as int), '12'::double, '2026-11-01'::date, timestamptz '2026-11-01 10:00:00+02'",
    "select abs(-lat), floor(lat), ceil(lat), floor(-lat), ceil(-lat), sign(lat - 42), exp(battery) from {R}",
    "select pow(lat, 2), power(lat, 0.5), greatest(lat, lon, battery), least(lat, battery), isnan(lat), isinf(lat / 0) from {R}",
    "select coalesce(battery, 0.5), nullif(model, 'M1'), if(battery > 0.5, 'a', 'b'), 1 is null or battery > 0.5 from {R}",
    "select case when battery > 0.5 then 1 when battery is null then 2 else 3 end, case model when 'M1' then 1 end from {R}",
    # aggregates
    "select count(*), count(battery), count(distinct watcher_id), count(distinct (watcher_id, model)) from reports",
    "select sum(sequence), sum(battery), avg(battery), avg(sequence), min(time), max(time), sum(1) from reports",
    "select median(battery), stddev(lat), stddev_pop(lat), stddev_samp(lat), variance(lat), var_pop(lat) from reports",
    "select corr(lat, lon), quantile_cont(lat, 0.9), quantile_disc(lat, 0.9), quantile(battery, 0.25) from reports",
    "select count_if(clock_suspect), countif(battery < 0.5), count(*) filter (where battery > 0.5) from reports",
    "select any_value(model), bool_and(clock_suspect), bool_or(clock_suspect) from reports where model = 'M1'",
    "select min(harmonyscore) filter (where confidence > 0.5), sum(distinct harmonyscore), max(time) from sightings",
    "select watcher_id, arg_max(report_id, (time, report_id)), min_by(report_id, (time, report_id)) from reports"
    " group by 1 order by 1",
    "select watcher_id, count(*) filter (where clock_suspect) as n from reports group by all having n > 0 order by n, 1",
    "select max(watcher_id), count(*) from reports where false",
    "select model, firmware, count(*) from reports group by cube (model, firmware) order by all",
    "select count(*), watcher_id from reports group by 2 having count(*) > 2 order by 1 desc, 2 limit 5 offset 2",
    # windows
    "select row_number() over w, ntile(4) over w, lag(battery) over w, lead(battery, 2) over w, sum(battery) over w"
    ' from reports window w as (partition by watcher_id order by report_id, received_at, "offset")'
    ' order by report_id, received_at, "offset"',
    "select rank() over w, dense_rank() over w, percent_rank() over w, cume_dist() over w from reports"
    ' window w as (partition by model order by battery desc) order by report_id, received_at, "offset"',
    "select first_value(report_id) over w, last_value(report_id) over w, lag(battery, 1, -1.0) over w from reports"
    ' window w as (partition by watcher_id order by report_id, received_at, "offset")'
    ' order by report_id, received_at, "offset"',
    "select report_id from reports qualify row_number() over (partition by watcher_id order by time, report_id) = 1 order by 1",
    "select a, sum(b) over (order by a) from (select date_trunc('hour', time) as a, count(*) as b from reports group by 1)"
    " order by a",
    # text
    "select upper(model), lower(model), left(watcher_id, 2), right(watcher_id, 2), substr(watcher_id, 2, 3) from {R}",
    "select replace(watcher_id, 'w', 'x'), trim('  a b '), ltrim(' a'), rtrim('a '), trim(both 'x' from 'xax') from {R}",
    "select concat(watcher_id, firmware, 'x'), watcher_id || firmware, concat_ws('-', watcher_id, firmware, model) from {R}",
    "select starts_with(watcher_id, 'w-0'), contains(watcher_id, '01'), ends_with(watcher_id, '1') from {R}",
    "select strpos(watcher_id, '-'), instr(watcher_id, 'q'), regexp_matches(watcher_id, '^w-0.*[13]$') from {R}",
    "select upper('ñandú'), length('Ñandú'), strpos('Ñandú', 'd'), substring('Ñandú', 2), left('Ñandú', 1), right('Ñandú', 1)",
    "select 'a\\' || watcher_id || 'it''s \"q\" \\n $x :y', '-- no comment', 'a' || null from {R}",
    "select count(*) from heard where word like '%ain' and word not like 'b%' and word ilike 'R%'",
    """select x ->> '$.a', x ->> 'b', x ->> '$.c.d', json_extract_string(x, '$.a') from (values
       ('{"a": 1, "b": "x", "c": {"d": 1.50}}'), ('{"a": null, "b": true, "c": {}}'), ('{"b": "\\u00e9\\"q"}'), (null)) t(x)
       order by x""",
    # lists and rows
    "select len(words), length(watcher_id), len(citizens), array_length(words), len(citizens[1].citizen) from {R}",
    "select words[1], words[2], words[-1], words[9], words[0], citizens[1].harmonyscore, citizens[9].citizen from {R}",
    "select list_contains(words, 'rain'), array_contains(words, $word), len(list_filter(words, x -> x = 'bus')) from {R}",
    "select list_transform(words, x -> upper(x)), list_filter(words, x -> x <> 'rain') from {R}",
    "select list_transform(citizens, c -> c.harmonyscore), len(list_filter(citizens, c -> c.harmonyscore < 25)) from {R}",
    "select unnest(words), report_id, generate_subscripts(words, 1) as i from reports order by all",
    "select w, count(*) as n from (select unnest(words) as w from reports) group by w order by n desc, w",
    "select c.harmonyscore from (select unnest(citizens) as c from reports) order by 1",
    "select r.watcher_id, t.w from reports r cross join unnest(r.words) as t(w) order by all",
    "select h3_parent(h3, 5), h3_parent(h3, 0), h3_parent(h3, 9) from {R}",
    "select * from (values (1, 'a'), (2, null)) t(a, b) order by 1",
    # relations
    "from reports order by all",
    "select * exclude (words, citizens), 'x' as x from {R}",
    "select * replace (1.5 as lat) from {R}",
    "select * from reports join alerts using (report_id) order by all",
    "select count(*) from reports r join alerts a using (watcher_id, report_id)",
    "select count(*) from reports a left join alerts b on a.report_id = b.report_id and b.harmonyscore < 10",
    "select count(*) from alerts a full join rejects b on a.watcher_id = b.sender",
    "select a.report_id from reports a semi join alerts b using (report_id) order by 1",
    "select a.report_id from reports a anti join alerts b on a.report_id = b.report_id order by 1",
    "select report_id from reports r where exists (select 1 from alerts a where a.report_id = r.report_id) order by 1",
    "select watcher_id from reports where report_id in (select report_id from alerts) group by 1 order by 1",
    "select watcher_id, (select count(*) from alerts a where a.watcher_id = r.watcher_id)"
    " from (select distinct watcher_id from reports) r order by 1",
    "with recursive t as (select 1 as n union all select n + 1 from t where n < 5) select n from t order by n",
    "with reports as (select 1 as report_id) select report_id from reports",
    "select time from reports union all select time from alerts order by 1 limit 3",
    "select watcher_id from reports except select watcher_id from alerts where harmonyscore < 4 order by 1",
    "select watcher_id from reports intersect select watcher_id from alerts order by 1",
    "select distinct on (watcher_id) watcher_id, report_id from reports order by watcher_id, report_id",
    "select harmonyscore as s, s * 2 as d from sightings where s < 30 order by all",
    'select watcher_id as "a b", watcher_id as watcher_id, watcher_id from {R}',
    "select $threshold, $n, $since, $naive, $word, $day, $none, $yes",
    "select count(*) from reports where time >= $since and time < $since + interval 1 day and battery < $threshold",
)]  # fmt: skip

REFUSED = {
    "log(": "select log(lat) from reports",
    "sqrt(": "select sqrt(lat) from reports",
    "array_agg(": "select list(word) from heard",
    "regexp_replace(": "select regexp_replace(word, 'a', 'b') from heard",
    "struct(": "select {'a': 1}",
    "first(": "select first(model) from reports",
    "approx": "select approx_count_distinct(word) from heard",
    "ASOF": "select * from alerts a asof join reports r on a.watcher_id = r.watcher_id and a.time >= r.time",
    "POSITIONAL": "select * from reports positional join alerts",
    "TABLESAMPLE": "select * from reports using sample 10",
    "SLICE": "select words[1:2] from reports",
    "UNION BY NAME": "select time from reports union all by name select time from alerts",
    "whole numbers": "select lat % 2 from reports",
    "to text": "select cast(time as varchar) from reports",
    "date_diff('week')": "select date_diff('week', time, received_at) from reports",
    "millisecond": "select extract(millisecond from time) from reports",
    "strftime": "select strftime(time, '%a') from reports",
    "above zero": "select left(watcher_id, -1) from reports",
    "positive literal": "select round(lat, -2) from reports",
    "several lists": "select unnest(words), unnest(citizens) from reports",
    "surely a list": "select x[1] from (select 'abc' as x)",
}
"""What is refused, by a word of the reason."""

DIFFERENT = {
    "select upper('straße')": "Spark maps a letter to several where Unicode says so (SS), DuckDB keeps ß",
    "select lower('ΑΣ')": "Spark knows the Greek final sigma, DuckDB does not",
    "select lower('İ')": "Spark keeps the dot of the Turkish capital as a letter of its own, DuckDB drops it",
}
"""Known differences, with their reasons."""
